"""The graph of README: a bar an activity and tool."""

from measure import median


def svg(figures, title):
    """`figures`: {activity: {tool: [Figure]}}; median wall seconds."""
    bars, y = [], 46
    longest = max(median(rounds, "wall") for tools in figures.values() for rounds in tools.values())
    for what, tools in figures.items():
        bars.append(f'<text x="8" y="{y}" font-weight="bold">{what}, wall seconds</text>')
        y += 10
        for tool, rounds in tools.items():
            wall = median(rounds, "wall")
            width = 420 * wall / longest
            colour = "#1f6f8b" if tool.startswith("charon") else "#b8c4c9"
            bars.append(
                f'<text x="196" y="{y + 13}" text-anchor="end">{tool}</text>'
                f'<rect x="204" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>'
                f'<text x="{210 + width:.1f}" y="{y + 13}">{wall:.2f}</text>'
            )
            y += 24
        y += 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="{y}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n<text x="8" y="18">{title}</text>\n' + "\n".join(bars) + "\n</svg>\n"
    )
