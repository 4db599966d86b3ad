"""Numbers, shares and times as the page writes them for people."""


def number(value: float) -> str:
    """Three digits: 0.0832, 12.3, 1,234."""
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) < 1e7 and abs(value) >= 1000 else f"{value:.2e}"


def grouped(count: int) -> str:
    """A count with its thousands set apart: 1,234,567."""
    return f"{count:,}"


def percent(part: float, whole: float) -> str:
    """`part` of `whole`: 12 %, 1.3 %, 0.004 %. Only nothing reads as 0 %."""
    if not whole or not part:
        return "0 %"
    share = 100 * part / whole
    if share >= 99.95 and part < whole:
        return "over 99.9 %"
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %" if share >= 0.001 else "under 0.001 %"


def minute(iso: str) -> str:
    """An ISO 8601 time in UTC, to the minute: 2026-11-25 15:10 UTC."""
    return f"{iso[:10]} {iso[11:16]} UTC" if len(iso) > 16 else iso
