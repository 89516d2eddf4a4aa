"""The board: whose unconditional prediction a step finds."""

import copy
import threading

import pytest
import torch

import sd_ext
from sd_ext.attaching import attach, detach
from sd_ext.board import BOARD, MOST, Board
from sd_ext.errors import InputError


def test_a_prediction_is_found_by_its_timestep_and_shape_and_once():
    board = Board()
    first, second = torch.tensor(5.0), torch.tensor(5.0)  # equal, not the same
    batch = torch.randn(6, 4, 2, 2)
    board.write(first, batch)
    board.write(second, batch + 1)
    like = torch.empty(3, 4, 2, 2)
    assert torch.equal(board.take(first, like), batch[:3])
    assert torch.equal(board.take(second, like), batch[:3] + 1)
    assert board.take(first, like) is None
    board.write(first, batch)
    assert torch.equal(board.take(first, torch.empty(2, 4, 2, 2)), batch[:2])  # a guidance with three parts
    for other in (torch.tensor(5.0), 5.0, None):  # of another run
        board.write(first, batch)
        assert board.take(other, like) is None
    board.write(first.expand(6), batch)
    assert torch.equal(board.take(first, like), batch[:3])
    board.notes.clear()
    for unfit in (torch.empty(4, 4, 2, 2), torch.empty(3, 4, 2, 3), torch.empty(12, 4, 2, 2)):
        board.write(first, batch)
        assert board.take(first, unfit) is None
    board.write(first, batch, alone=True)
    assert torch.equal(board.take(first, torch.empty(6, 4, 2, 2)), batch)


def test_without_guidance_what_was_handed_over_is_both_halves():
    board, t, like = Board(), torch.tensor(5.0), torch.randn(3, 4, 2, 2)
    for notes in ([like.clone()], [torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), like]):
        for note in notes:
            board.write(t, note)
        assert board.take(t, like) is like
    for note in range(3):  # three calls, and none of them is what was handed over
        board.write(t, like + note + 1)
    assert board.take(t, like) is None


def test_either_half():
    board, t = Board(), torch.tensor(5.0)
    u, c, other = torch.randn(3, 2, 4, 2, 2).unbind()
    guided = u + 3 * (c - u)
    for half, wanted in (("unconditional", u), ("conditional", c)):
        board.write(t, torch.cat([u, c]))
        assert torch.equal(board.take(t, guided, half), wanted)
        board.write(t, torch.cat([u, c, other]))
        assert torch.equal(board.take(t, guided, half), wanted)
        board.write(t, torch.cat([c, other, u]), edits=True)  # it is told the picture, too
        assert torch.equal(board.take(t, guided, half), wanted)
        for order in ((u, c), (c, u)):
            for output in order:
                board.write(t, output)
            assert torch.equal(board.take(t, guided, half), wanted)
        board.write(t, torch.cat([c, other]))
        board.write_halves(t, u, c)  # by one who knows them
        assert torch.equal(board.take(t, guided, half), wanted)
        assert not board.notes


def test_shapes_that_pipelines_make_of_it():
    board, t = Board(), torch.tensor(5.0)
    with_variance = torch.randn(2, 6, 4, 4)
    board.write(t, with_variance)
    assert torch.equal(board.take(t, torch.randn(1, 3, 4, 4)), with_variance[:1, :3])
    film = torch.randn(4, 3, 5, 2, 2)  # (batch, channels, frames, ...)
    board.write(t, film)
    frames = torch.stack([film[i, :, j] for i in range(2) for j in range(5)])
    assert torch.equal(board.take(t, torch.randn(10, 3, 2, 2)), frames)


def test_it_keeps_little_and_no_gradients():
    board = Board()
    for number in range(3 * MOST):
        board.write(number, torch.ones(2, requires_grad=True) * number)
    assert len(board.notes) == MOST and not any(note.output.requires_grad for note in board.notes)


def test_threads_do_not_see_each_other():
    board, seen = Board(), []
    board.write(1, torch.zeros(2, 1))
    thread = threading.Thread(target=lambda: seen.append(board.take(1, torch.zeros(1, 1))))
    thread.start()
    thread.join()
    assert seen == [None] and board.take(1, torch.zeros(1, 1)) is not None


@pytest.fixture(autouse=True)
def empty():
    """Other tests leave notes in this thread."""
    BOARD.notes.clear()


class Network(torch.nn.Module):
    def forward(self, sample, timestep, states=None, return_dict=True):
        return (2 * sample,)


@pytest.mark.parametrize("how", ["by name", "by place"])
def test_attached_networks_write_and_detached_ones_do_not(how):
    network, x, t = Network(), torch.ones(2, 4, 1, 1), torch.tensor(3)
    like = torch.empty(1, 4, 1, 1)

    def call(of):
        return of(x, t) if how == "by place" else of(sample=x, timestep=t)

    call(network)
    assert BOARD.take(t, like) is None
    attach(network)
    attach(network)
    call(network)
    assert len(BOARD.notes) == 1
    assert torch.equal(BOARD.take(t, like), 2 * x[:1])
    call(copy.deepcopy(network))
    assert torch.equal(BOARD.take(t, like), 2 * x[:1])
    detach(network)
    detach(network)
    call(network)
    assert BOARD.take(t, like) is None


class Pipe:
    """A pipeline that cannot be hashed, as one with `__eq__` alone."""

    def __init__(self, unet):
        self.unet = unet

    def __eq__(self, other):
        return isinstance(other, Pipe)


def test_a_network_of_two_pipelines_is_detached_with_the_last():
    network, x, t = Network(), torch.ones(2, 4, 1, 1), torch.tensor(3)
    one, two = Pipe(network), Pipe(network)

    def writes():
        network(x, t)
        return BOARD.take(t, x[:1]) is not None

    attach(one)
    with sd_ext.sampling(two):
        assert writes()
    attach(two)
    detach(one)
    assert writes()
    attach(network)
    detach(two)
    assert writes()
    detach(network)
    assert not writes()
    with sd_ext.sampling(one):
        assert writes()
    assert not writes()
    attach(one)
    del one
    attach(two)
    detach(two)
    assert not writes()


def test_what_has_no_network():
    for thing in (object(), type("Pipe", (), {"unet": None})()):
        with pytest.raises(InputError, match="has no U-Net"):
            attach(thing)


@pytest.mark.parametrize("thing", [3, None, "a folder", {"unet": 1}])
def test_what_has_no_unet_is_refused_by_name(thing):
    for call in (sd_ext.attach, lambda each: sd_ext.sampling(each).__enter__()):
        with pytest.raises(InputError, match=f"{type(thing).__name__} has no U-Net"):
            call(thing)
