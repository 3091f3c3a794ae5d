"""What the media service counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECEIVED = Counter("media_received_bytes_total", "Bytes of uploads written to the object store")
SENT = Counter("media_sent_bytes_total", "Bytes of media given out")
UPLOADING = Gauge("media_uploads_in_flight", "Requests that bring bytes of uploads")
PROCESSED = Counter("media_processed_total", "Media that were processed, by what came of it", ["outcome"])
PROCESSING = Histogram("media_processing_seconds", "Time to process a medium", ["kind"])
RETRIED = Counter(
    "media_processing_retries_total", "Attempts at processing that have to be made again", ["reason"]
)
CLEANED = Counter("media_cleaned_total", "Media deleted by the clean-up", ["reason"])
