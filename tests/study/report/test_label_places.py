"""Names beside points: readable wherever the points leave room for it."""

from __future__ import annotations

from study.report.figures import label_places


def _sides(*points: tuple[float, float], name: str = "defense") -> list[str]:
    return label_places.sides(points, [name] * len(points), points)


def test_a_name_stands_right_of_its_point_where_nothing_is_in_the_way() -> None:
    assert _sides((0.2, 0.2), (0.5, 0.5), (0.2, 0.8)) == ["middle right"] * 3


def test_a_name_at_the_right_edge_stands_left_of_its_point() -> None:
    assert _sides((0.99, 0.5)) == ["middle left"]


def test_a_name_does_not_cover_the_point_beside_it() -> None:
    assert _sides((0.50, 0.5), (0.54, 0.5)) == ["middle left", "middle right"]


def test_a_name_does_not_cover_another_name() -> None:
    left, middle, right = _sides((0.40, 0.5), (0.44, 0.5), (0.48, 0.5))
    assert (left, right) == ("middle left", "middle right")
    assert middle not in ("middle left", "middle right")


def test_points_outside_of_the_panel_are_in_nobodys_way() -> None:
    assert label_places.sides([(0.96, 0.5)], ["a"], [(0.96, 0.5), (1.02, 0.5)]) == ["middle right"]
