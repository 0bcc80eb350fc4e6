"""Every figure is drawn: these tests look at the pictures."""

from drawn_once import all_drawn

__all__ = ["all_drawn"]
