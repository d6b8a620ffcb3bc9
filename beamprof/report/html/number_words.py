"""Numbers as a page shows them."""

import math


def percent(share: float, digits: int = 1) -> str:
    """98.4 %; never rounded up to 100 or down to 0 where it is neither."""
    value = round(100 * share, 9)
    text = f"{value:.{digits}f}"
    limit = 10.0**-digits
    if float(text) == 100.0 and value < 100.0:
        text = f">{100 - limit:.{digits}f}"
    elif float(text) == 0.0 and value > 0.0:
        text = f"<{limit:.{digits}f}"
    return f"{text} %"


def significant(value: float) -> str:
    """Three significant digits, none after the point from 100 on: 0.0123, 3.00, 29.1, 1,961."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "none"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def points(value: float) -> str:
    """Percentage points beside something else: +0.08, −3.60."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def axis_number(value: float) -> str:
    """The shortest form: 0.01, 0.5, 200, 1,000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def axis_ms(value: float) -> str:
    """Milliseconds with a unit, seconds from 1000 on: 20 ms, 1.5 s."""
    return f"{value / 1e3:g} s" if value >= 1000 else f"{value:g} ms"


def axis_percent(share: float) -> str:
    """100 %, 1 %, 0.01 %."""
    return f"{100 * share:g} %"
