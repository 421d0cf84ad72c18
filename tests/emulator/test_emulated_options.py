"""What calls of layers may ask for, on the CUDA backend: the states after every step, noise that is
given in place of a seed.
"""

from __future__ import annotations

from test_masks import test_the_masks_that_would_be_drawn_change_no_bit  # noqa: F401
from test_modules_states import (  # noqa: F401
    test_equals_a_loop,
    test_the_last_of_a_sequence_is_the_final_state_and_a_gradient_may_be_of_it_alone,
)
