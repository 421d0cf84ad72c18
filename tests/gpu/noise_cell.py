"""A cell that shows what it draws."""
# ruff: noqa: RUF012

import rnnext


class Noises(rnnext.Recurrent):
    """Each state is a noise: at each step another, or the same in a whole sequence."""

    gates = ("a",)
    states = ("h", "s1", "s2", "s3", "s4", "s5", "s6", "s7")
    noise = {
        "dropped": rnnext.Dropout(0.3),
        "kept": rnnext.Bernoulli(0.3),
        "normal": rnnext.Normal(2.0, 3.0),
        "uniform": rnnext.Uniform(0.1, 0.4),
        "dropped_once": rnnext.Dropout(0.3, per="sequence"),
        "kept_once": rnnext.Bernoulli(0.4, per="sequence"),
        "normal_once": rnnext.Normal(1.0, 3.0, per="sequence"),
        "uniform_once": rnnext.Uniform(0.2, 0.4, per="sequence"),
    }

    def step(  # type: ignore[no-untyped-def]
        a, dropped, kept, normal, uniform, dropped_once, kept_once, normal_once, uniform_once
    ):
        return (
            dropped + 0 * a,
            kept,
            normal,
            uniform,
            dropped_once,
            kept_once,
            normal_once,
            uniform_once,
        )
