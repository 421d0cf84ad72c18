"""What a step keeps for its backward, and its stages."""

import pytest
import torch
from eager import program_of
from sample_cells import CELLS

from rnnext.cell import declare
from rnnext.codegen.cut import cheapest_closure
from rnnext.codegen.plan import plan


def planned(cell, streams=1):
    return plan(program_of(cell, streams))


def widths(schedule):
    return [stage.width for stage in schedule.stages]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("LSTM", {"i", "f", "g", "o"}),
        ("GRU", {"r", "z", "n", "r_n"}),
        ("LightGRU", {"z", "n"}),
        ("TanhRNN", set()),
        ("ReluRNN", set()),
    ],
)
def test_kept_values(name, kept):
    found = planned(CELLS[name])
    assert {saved.name for saved in found.saved} == kept
    assert len(found.saved) == len(kept)
    assert widths(found.forward) == widths(found.backward) == ["hidden_size"]


def test_a_function_of_a_new_state_is_made_again():
    again = planned(CELLS["LSTM"]).again
    assert [(node.op, price) for node, price in again] == [("tanh", 0.4)]
    assert planned(CELLS["GRU"]).again == []


def test_a_function_of_a_kept_value_is_made_again_if_that_is_cheaper():
    """The sine's cosine needs the gate itself, so the sine is not kept beside it."""
    cell = declare("SINE", lambda a, h: torch.sin(a) * h, gates=("a",))
    found = planned(cell)
    assert [saved.name for saved in found.saved] == ["a_a"]
    assert {node.op for node, _ in found.again} == {"sin"}


def test_one_derivative_is_kept_instead_of_what_it_is_made_of():
    """Of a * sigmoid(a) the backward needs the derivative alone."""
    cell = declare("SWISH", lambda a: a * torch.sigmoid(a) * torch.erf(a), gates=("a",))
    assert len(planned(cell).saved) == 1


def test_an_operand_is_kept_once():
    found = planned(CELLS["MGU"])
    (product,) = found.products
    assert found.saved[product.saved[0]].node is found.program.products[0].operands[0]
    assert (product.before, product.returns) == (1, 1)
    assert len(found.saved) == 3


def test_stages_of_totals():
    found = planned(CELLS["LayerNormLSTM"])
    one, hidden = 1, "hidden_size"
    assert widths(found.forward) == [hidden, hidden, one, hidden, hidden, one, hidden]
    assert len(found.backward.stages) == 4
    assert sum(saved.width == hidden for saved in found.saved) == 4  # less than an LSTM's gates


def test_stages_of_two_widths():
    found = planned(CELLS["LSTMP"])
    assert widths(found.forward) == ["hidden_size", "proj_size"]
    assert widths(found.backward) == ["proj_size", "hidden_size"]


def test_both_streams_of_a_product_are_written_before_either_returns():
    found = planned(CELLS["MGU"], streams=2)
    (product,) = found.products
    stages = {
        (task.call, task.index): number
        for number, stage in enumerate(found.backward.stages)
        for task in stage.tasks
    }
    assert stages["dproduct", 0] == stages["dproduct", 1] == 0
    assert product.returns == 1
    assert len(product.values) == len(set(product.values)) == 2


def test_no_state_is_read_after_it_is_overwritten():
    for name in ("Rotation", "RunningNorm"):
        found = planned(CELLS[name])
        for order, leaf, call in (
            (found.forward, "state", "next"),
            (found.backward, "dnext", "dstate"),
        ):
            for number, stage in enumerate(order.stages):
                written = {(leaf, task.index) for task in stage.tasks if task.call == call}
                for later in order.stages[number + 1 :]:
                    assert not written & later.leaves


def test_a_cheap_value_is_made_again_in_a_later_stage():
    """Of f and 1 - f, MGU hands on f alone."""
    found = planned(CELLS["MGU"])
    handed = {node.op for node, _ in found.forward.slots}
    assert handed == {"sigmoid", "mul"}  # f, and the product's operand


def test_a_plan_says_what_is_kept_and_why():
    text = str(planned(CELLS["LSTM"]))
    assert "4 values kept, 1 stage forward, 1 stage backward" in text
    assert "kept: i (hidden_size), i = torch.sigmoid(i): making it again would cost 0.40" in text
    assert "made again: tanh (hidden_size)" in text


def test_cheapest_closure():
    weights = {"forced": 1, "paid": 2, "gain": -5, "needs": 3, "bad": -1, "dear": 9}
    implies = [("forced", "paid"), ("gain", "needs"), ("bad", "dear")]
    assert cheapest_closure(weights, implies, ["forced"]) == {"forced", "paid", "gain", "needs"}
