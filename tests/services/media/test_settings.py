"""The settings of media: read from the environment, refused when they contradict."""

from __future__ import annotations

from pathlib import Path

import pytest

from whispr import limits
from whispr.config import ConfigError, Settings, load


def test_settings_reach_the_service() -> None:
    """Each is where the service looks for it, in its units; 0 lifts a limit."""
    settings = load(
        {
            "WHISPR_MEDIA_UNLINKED_H": "2", "WHISPR_MEDIA_DOWNLOAD_URL_S": "60", "WHISPR_MEDIA_WORKERS": "3",
            "WHISPR_MEDIA_KEY_DIR": "/keys", "WHISPR_LIMITS_MEDIA_FILE_BYTES": "5",
            "WHISPR_LIMITS_MEDIA_USER_BYTES": "0", "WHISPR_LIMITS_MEDIA_PIXELS": "7",
        }
    ).settings  # fmt: skip
    options = limits.media(settings)
    assert options.limits.unlinked_s == 7200
    assert options.limits.download_url_s == 60
    assert (options.limits.file_bytes, options.limits.user_bytes) == (5, 0)
    assert options.bounds.pixels == 7
    assert (options.workers, options.key_folder) == (3, Path("/keys"))
    defaults = limits.media(Settings()).limits
    assert (defaults.file_bytes, defaults.user_bytes) == (100 * 1024**2, 1024**3)


@pytest.mark.parametrize("environ", [
    {"WHISPR_MEDIA_SCAN_COMMAND": "a", "WHISPR_MEDIA_SCAN_CLAMD": "b:1"},
    {"WHISPR_MEDIA_PUBLIC_URL": "media.example.org"}, {"WHISPR_MEDIA_WORKERS": "0"},
    {"WHISPR_MEDIA_UPLOAD_URL_S": "1"}, {"WHISPR_LIMITS_MEDIA_PIXELS": "0"},
])  # fmt: skip
def test_settings_that_make_no_sense(environ: dict[str, str]) -> None:
    """They are refused at the start, by name."""
    with pytest.raises(ConfigError, match="media"):
        load(environ)
