"""Numbers as people read them."""


def engineering(number: int | float | None, unit: str = "") -> str:
    """1234567 as 1.23 M; nothing for None."""
    if number is None:
        return ""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".strip()


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else three_digits(seconds * 1e3)


def three_digits(number: float) -> str:
    """Or all before the point where there are more: 1253, not 1.25e+03."""
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"
