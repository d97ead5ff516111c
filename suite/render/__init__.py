"""The site: a folder of plain files drawn from boards, the same bytes from the same records."""

from .site import MARKER, SiteSummary, build_site

__all__ = ["MARKER", "SiteSummary", "build_site"]
