"""gRPC over `whispr.http2`, in Trio: servers, channels, and the code generator for both."""
