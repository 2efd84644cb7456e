import torch

from lightning_stiffness.inputs import input_vectors, inputs_of


def test_the_first_part_that_has_a_size_and_is_a_number():
    x, weights, y = torch.randn(4, 3, 2), torch.rand(4), torch.arange(4)
    assert inputs_of((y, weights, x), 4) is not None
    assert torch.equal(inputs_of({"labels": y, "image": x}, 4), x)
    assert input_vectors([x, y], 4).shape == (4, 6)


def test_images_of_bytes_count_and_tokens_do_not():
    assert inputs_of((torch.zeros(4, 2, 2, dtype=torch.uint8), torch.arange(4)), 4) is not None
    assert inputs_of({"input_ids": torch.zeros(4, 7, dtype=torch.int64)}, 4) is None
    assert input_vectors({"input_ids": torch.zeros(4, 7, dtype=torch.int64)}, 4) is None


def test_another_number_of_samples_is_no_input():
    assert inputs_of((torch.zeros(3, 2), torch.arange(4)), 4) is None


def test_inputs_that_are_not_finite_have_no_distances():
    assert input_vectors((torch.full((4, 2), torch.inf),), 4) is None
