"""What networks are told: any subset of covariates, each with a null of its own, padding that nobody sees."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lit_medgen.batch import Condition
from lit_medgen.networks import CodeTransformer, ConditionEncoder, Covariates, UNet

EVERY = Covariates(
    numbers=("age", "volume"), categories={"sex": 2, "grade": 4}, labels={"findings": ("a", "b", "c")},
    text_channels=6, text_tokens=5,
)  # fmt: skip
WITHOUT_TEXT = replace(EVERY, text_channels=0, text_tokens=0)
GROUPS = list(EVERY.groups.items())
NUM = 3

each_dim = pytest.mark.parametrize("dim", [2, 3])


def randomise(network: nn.Module, std: float = 0.1) -> nn.Module:
    """Random weights everywhere, zero-initialised layers included; norms stay near the identity."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(around + std * torch.randn(parameter.shape, generator=random))
    return network


def encoder(covariates: Covariates = EVERY) -> ConditionEncoder:
    network = ConditionEncoder(covariates, 16)
    randomise(network, 0.5)
    return network.requires_grad_(False)


def everything(num_tokens: int = 3) -> Condition:
    """All covariates of three images; texts of one token and more, of 3 or more with the padding."""
    text = torch.randn(NUM, 3, 6, generator=torch.Generator().manual_seed(1))
    text[0, 1:] = torch.nan
    text = nn.functional.pad(text, (0, 0, 0, num_tokens - 3), value=torch.nan)
    attributes = {"age": [0.1, 0.5, 1.2], "volume": [0.9, 0.0, -0.3], "sex": [0, 1, 1], "grade": [0, 3, 2]}
    attributes |= {"a": [0, 1, 0], "b": [1, 1, 0], "c": [0, 1, 0]}
    return Condition({name: torch.tensor(values).float() for name, values in attributes.items()}, text=text)


def without(condition: Condition, *names: str) -> Condition:
    """The same, of which some attributes, or the text, are left out altogether."""
    kept = {name: value for name, value in condition.attributes.items() if name not in names}
    return replace(condition, attributes=kept, text=None if "text" in names else condition.text)


def unknown(condition: Condition, *names: str) -> Condition:
    """The same, of which some attributes, or the text, are NaN."""
    every = torch.ones(NUM, dtype=torch.bool)
    condition = condition.drop_attributes({name: every for name in names if name != "text"})
    return condition.drop_text(every) if "text" in names else condition


def same(found: tuple[Tensor, Tensor, Tensor | None], expected: tuple[Tensor, Tensor, Tensor | None]) -> bool:
    return all(
        a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in zip(found, expected, strict=True)
    )


def test_any_subset_may_be_absent_in_any_way() -> None:
    """Of all 64 subsets: left out, NaN and dropped are the same, and what is there keeps its tokens to the last bit."""
    network, condition = encoder(), everything()
    _, whole, _ = network(condition, NUM)
    _, nothing, _ = network(None, NUM)
    for chosen in product((False, True), repeat=len(GROUPS) + 1):
        absent = [name for (_, names), gone in zip(GROUPS, chosen, strict=False) if gone for name in names]
        absent += ["text"] if chosen[-1] else []
        found = network(without(condition, *absent), NUM)
        assert same(found, network(unknown(condition, *absent), NUM))
        for i, gone in enumerate(chosen):
            tokens = slice(i, i + 1) if i < len(GROUPS) else slice(i, None)
            assert torch.equal(found[1][:, tokens], (nothing if gone else whole)[:, tokens])


def test_to_drop_all_is_to_tell_nothing() -> None:
    network, condition = encoder(), everything()
    rows = torch.tensor([True, False, True])
    dropped, absent, whole = (network(some, NUM) for some in (condition.drop(rows), None, condition))
    for found, nothing, everything_told in zip(dropped, absent, whole, strict=True):
        assert torch.equal(found[rows], nothing[rows])
        assert torch.equal(found[~rows], everything_told[~rows])


def test_a_set_of_labels_is_absent_when_one_is() -> None:
    """And a set of zeros is something else."""
    network = encoder()
    condition = everything()
    one_unknown = unknown(condition, "b")
    assert same(network(one_unknown, NUM), network(without(condition, "a", "b", "c"), NUM))
    none_found = Condition({name: torch.zeros(NUM) for name in ("a", "b", "c")})
    assert not torch.allclose(network(none_found, NUM)[1], network(None, NUM)[1])


def test_what_is_no_category_is_absent() -> None:
    """The network cannot refuse it without a wait for the device; nor may it take it for another category."""
    network = encoder(Covariates(categories={"grade": 4}))
    found = network(Condition({"grade": torch.tensor([-1.0, 0.5, 4.0, torch.inf, 1e30, 3.0])}), 6)[1][:, 0]
    null = network(None, 1)[1][0]
    assert torch.equal(found[:5], null.expand(5, -1))
    assert not torch.allclose(found[5], null)


def test_the_embedding_is_a_projection_of_the_sum() -> None:
    network = encoder(WITHOUT_TEXT)
    embedding, tokens, mask = network(everything(), NUM)
    assert_close(embedding, network.out(tokens.sum(1)))
    assert mask is None
    assert tokens.shape == (NUM, 5, 16)


def test_order_of_covariates_means_nothing() -> None:
    """With the same weights by name, tokens are permuted and the embedding is the same."""
    turned = Covariates(
        EVERY.numbers[::-1], dict(reversed(EVERY.categories.items())), EVERY.labels, EVERY.text_channels, 5
    )
    network, other = encoder(), ConditionEncoder(turned, 16)
    other.load_state_dict(network.state_dict())
    (embedding, tokens, _), (their_embedding, theirs, _) = (each(everything(), NUM) for each in (network, other))
    assert_close(their_embedding, embedding)
    assert torch.equal(theirs, tokens[:, [1, 0, 3, 2, *range(4, tokens.shape[1])]])


def test_padding_is_not_seen() -> None:
    """How long the texts of others are, and what pads them, changes no bit; the mask says what is padding."""
    network = encoder()
    short, long = (network(everything(num), NUM) for num in (3, 5))
    assert same(short, long)
    assert short[2] is not None
    assert short[2].sum(1).tolist() == [5 + 1, 5 + 3, 5 + 3]
    alone = network(Condition(text=everything().text[:1, :1]), 1)  # type: ignore[index]
    assert torch.equal(alone[1][:, 5:6], short[1][:1, 5:6])


def test_an_absent_text_is_the_null_text() -> None:
    network, null = encoder(), torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    network.set_null_text(null[:2])
    null[2:] = torch.nan
    with pytest.raises(ValueError, match="the empty text is"):
        network.set_null_text(torch.zeros(6, 6))
    assert same(network(Condition(), NUM), network(Condition(text=null.expand(NUM, -1, -1)), NUM))
    network.null_text.fill_(torch.nan)  # even of no tokens at all
    assert all(found is None or found.isfinite().all() for found in network(Condition(), NUM))


def test_a_text_of_other_embeddings_is_refused() -> None:
    for text in (torch.zeros(NUM, 6, 6), torch.zeros(NUM, 5, 7)):
        with pytest.raises(ValueError, match="text_tokens 5 and text_channels 6"):
            encoder()(Condition(text=text), NUM)


def test_numbers_go_on_straight_outside_their_range() -> None:
    """Far outside, equal steps change a token equally, so nothing saturates, oscillates or explodes."""
    network = encoder(Covariates(("age",)))
    far = torch.tensor([-400.0, -300.0, -200.0, 200.0, 300.0, 400.0])
    below_2, below_1, below, above, above_1, above_2 = network(Condition({"age": far}), 6)[1][:, 0]
    assert_close(below_2 - below_1, below_1 - below, rtol=1e-3, atol=1e-3)
    assert_close(above_2 - above_1, above_1 - above, rtol=1e-3, atol=1e-3)
    assert (above_2 - above_1).norm() > 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Covariates(("age",), {"age": 2}), "'age' comes twice"),
        (lambda: Covariates(categories={"sex": 0}), "sex has 0 values"),
        (lambda: Covariates(labels={"findings": ()}), "findings is"),
        (lambda: Covariates(text_channels=4), "text_tokens 0"),
        (lambda: encoder(Covariates(("a.b", "a_b"))), "differ in dots"),
    ],
)
def test_impossible_covariates_are_refused(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()  # type: ignore[operator]


def unet(dim: int, covariates: Covariates | None = EVERY, **more: object) -> UNet:
    torch.manual_seed(0)
    sizes = {"channels": (8, 16), "attention": (False, True), "num_res_blocks": 1, "head_channels": 8}
    return UNet(dim, 1, 1, covariates=covariates, **sizes | more)  # type: ignore[arg-type]


def noisy(dim: int) -> tuple[Tensor, Tensor]:
    """x: 3 1 *s and t: 3."""
    return torch.randn(NUM, 1, *(4, 8, 4)[:dim], generator=torch.Generator().manual_seed(0)), torch.tensor(
        [0.1, 0.5, 1]
    )


@each_dim
@pytest.mark.parametrize("covariates", [EVERY, WITHOUT_TEXT])
def test_a_network_starts_as_the_unconditional_one(dim: int, covariates: Covariates) -> None:
    """With the weights of one that is told nothing: cross-attention and embedding are zero-initialised."""
    plain, network = unet(dim, None), unet(dim, covariates)
    nn.init.normal_(plain.conv_out.weight)  # type: ignore[arg-type]
    missing, unexpected = network.load_state_dict(
        {name.replace("attention.", "attention.within."): value for name, value in plain.state_dict().items()},
        strict=False,
    )
    assert not unexpected
    assert any(".across." in name for name in missing)
    assert all(".across." in name or name.startswith("encoder.") for name in missing)
    found = network(*noisy(dim), everything())
    assert found.std() > 0.1
    assert torch.equal(found, plain(*noisy(dim)))


@each_dim
@pytest.mark.parametrize("cross_attention", [True, False])
def test_each_covariate_is_heard_by_its_own_image(dim: int, cross_attention: bool) -> None:
    """A change of any covariate of one image changes that image alone; every weight learns."""
    network, condition = unet(dim, cross_attention=cross_attention), everything()
    randomise(network)
    out = network(*noisy(dim), condition)
    out.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.encoder.out.parameters())
    others = torch.tensor([False, True, False])
    for name in (*WITHOUT_TEXT.names, "text"):
        told = condition.drop_text(others) if name == "text" else condition.drop_attributes({name: others})
        changed = network(*noisy(dim), told)
        assert (changed[1] - out[1]).abs().max() > 1e-5, name
        assert_close(changed[[0, 2]], out[[0, 2]], rtol=1e-5, atol=1e-6)


def test_every_weight_of_an_encoder_learns() -> None:
    """Nulls where a covariate is absent, all else where it is there."""
    network = unet(2)
    randomise(network)
    some = everything().drop(torch.tensor([True, False, False]))
    network(*noisy(2), some).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


@each_dim
def test_gradient_checkpointing_changes_memory_only(dim: int) -> None:
    outcomes = []
    for gradient_checkpointing in (False, True):
        network = unet(dim, gradient_checkpointing=gradient_checkpointing).train()
        randomise(network)
        out = network(*noisy(dim), everything())
        out.square().mean().backward()
        outcomes.append([out, *(parameter.grad for parameter in network.parameters())])
    for plain, recomputed in zip(*outcomes, strict=True):
        assert_close(recomputed, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", [lambda: unet(2), lambda: CodeTransformer((4, 8), 7, 1, 16, 2, 2, EVERY)])
def test_bfloat16_is_float32_but_for_rounding(make: object) -> None:
    torch.manual_seed(0)
    network = make()  # type: ignore[operator]
    randomise(network)
    plain = network(*noisy(2), everything())
    with torch.autocast("cpu", torch.bfloat16):
        halves = network(*noisy(2), everything())
    assert_close(halves.float(), plain, rtol=0.1, atol=0.05 * plain.abs().max().item())


def test_heads_may_differ_between_levels() -> None:
    """Paper 003's 0, 512, 768 at levels of 256, 512, 768: no attention, then one head each."""
    network = unet(2, channels=(4, 8, 16), attention=(False, True, True), head_channels=(0, 8, 16))
    heads = {module.heads for module in network.modules() if hasattr(module, "heads")}
    assert heads == {1}
    assert network(*noisy(2), everything()).shape == (NUM, 1, 4, 8)
    with pytest.raises(ValueError, match="head_channels has 2 entries"):
        unet(2, channels=(4, 8, 16), attention=(False, True, True), head_channels=(8, 16))
    with pytest.raises(ValueError, match="head_channels is 0"):
        unet(2, head_channels=(8, 0))


def test_a_transformer_reads_all_covariates_and_no_padding() -> None:
    network = CodeTransformer((2, 2), 5, 0, 16, 2, 2, EVERY).requires_grad_(False)
    randomise(network)
    z, t = torch.zeros(NUM, 2, 2, dtype=torch.int64), torch.full((NUM,), 0.5)
    out = network(z, t, everything())
    assert torch.equal(out, network(z, t, everything(5)))
    for names in [names for _, names in GROUPS] + [("text",)]:
        assert ((network(z, t, without(everything(), *names)) - out).abs().amax((1, 2, 3)) > 1e-5).all(), names
