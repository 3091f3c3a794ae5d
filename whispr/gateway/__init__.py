"""REST for every RPC, transcoded from the protos' `google.api.http` annotations; health, metrics, docs."""
