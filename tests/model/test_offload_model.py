"""A model whose tables are in host memory computes what it computes with them on its device."""

import copy
import shutil

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import engram_model as em
from engram_kernels.offload import HostTable, OffloadedTable
from engram_model.errors import UsageError
from engram_model.offload import HostEmbedding
from engram_model.training.optimizer import parameter_groups

PLACES = ("host", "file")


@pytest.fixture(scope="module")
def checkpoint(make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def resident(checkpoint):
    return em.load(checkpoint, device="cpu")[0]


@pytest.fixture(params=PLACES)
def offloaded(request, checkpoint):
    return em.load(checkpoint, device="cpu", table=request.param)[0]


def tables(model) -> list[HostEmbedding]:
    return [memory.embed for memory in model.model.memories]


def test_same_logits(resident, offloaded, ids):
    assert all(isinstance(table, HostEmbedding) for table in tables(offloaded))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with torch.no_grad():
        expected = resident(ids, attention_mask=mask).logits
        assert torch.equal(offloaded(ids, attention_mask=mask).logits, expected)
    columns = resident.config.engram_columns
    assert [t.statistics().lookups for t in tables(offloaded)] == [ids.numel() * columns] * 2


def test_same_logits_with_rows_kept(resident, offloaded, ids):
    for memory in offloaded.model.memories:
        memory.embed.keep(memory.look_ahead(ids)[0], 50)
    with torch.inference_mode():
        expected = resident(ids).logits
        assert torch.equal(offloaded(ids).logits, expected)
    assert all(table.statistics().hits >= 50 for table in tables(offloaded))


def test_same_text_with_a_cache(resident, offloaded, ids):
    options = dict(max_new_tokens=6, do_sample=False)
    mask = torch.ones_like(ids[:1])
    expected = resident.generate(ids[:1], attention_mask=mask, **options)
    assert torch.equal(offloaded.generate(ids[:1], attention_mask=mask, **options), expected)
    caches = [DynamicCache(config=model.config) for model in (resident, offloaded)]
    for part in (ids[:, :9], ids[:, 9:10], ids[:, 10:]):
        with torch.no_grad():
            logits = [
                model(part, past_key_values=cache).logits
                for model, cache in zip((resident, offloaded), caches, strict=True)
            ]
        assert torch.equal(*logits)


def test_all_rows_are_asked_for_before_the_first_layer(offloaded, ids, monkeypatch):
    order = []
    prefetch = OffloadedTable.prefetch

    def noted(self, slots):
        order.append("prefetch")
        return prefetch(self, slots)

    monkeypatch.setattr(OffloadedTable, "prefetch", noted)
    for layer in offloaded.model.layers:
        layer.register_forward_pre_hook(lambda *_: order.append("layer"))
    with torch.no_grad():
        offloaded(ids)
    assert order == ["prefetch"] * 2 + ["layer"] * 3


def test_hooks_see_and_change_slots(resident, offloaded, tokenizer, ids):
    bridges = [em.hooked(model, tokenizer) for model in (resident, offloaded)]
    name = "blocks.2.engram.hook_slots"
    for hooks in ([], [(name, lambda slots, hook: slots.flip(1))]):
        outputs = [bridge.run_with_hooks(ids, fwd_hooks=hooks) for bridge in bridges]
        assert torch.equal(*outputs)


def test_gradients_of_inputs(resident, offloaded, ids):
    """Evaluation may differentiate: the rows are constants."""
    gradients = []
    for model in (resident, offloaded):
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=embeddings, engram_input_ids=ids).logits.logsumexp(-1).sum().backward()
        gradients.append(embeddings.grad)
        model.zero_grad()
    assert torch.equal(*gradients)


def test_refuses_training(offloaded, ids):
    assert parameter_groups(offloaded)["matrix"]
    offloaded.train()
    with pytest.raises(UsageError, match="in host memory cannot be trained"):
        offloaded(ids)
    with torch.no_grad():
        offloaded(ids)


def test_stays_where_it_is(offloaded):
    [first, _] = tables(offloaded)
    address = first.weight.data_ptr()
    offloaded.to(torch.bfloat16)
    assert first.weight.dtype == torch.float32 and first.weight.data_ptr() == address
    assert offloaded.model.memories[0].wkv.weight.dtype == torch.bfloat16


def test_saved_and_loaded_as_any_weight(resident, offloaded, tokenizer, ids, tmp_path):
    offloaded.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = em.load(tmp_path, device="cpu", table="device")[0]
    assert isinstance(again.model.memories[0].embed, nn.Embedding)
    assert not isinstance(again.model.memories[0].embed, HostEmbedding)
    assert resident.state_dict().keys() == offloaded.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, resident(ids).logits)
    assert em.load(tmp_path)[0].config.engram_table == offloaded.config.engram_table


def test_a_file_stays_a_file(checkpoint, tmp_path, ids):
    """The table is the file's pages: what is written into the file is read."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    model, _ = em.load(folder, device="cpu", table="file")
    table = tables(model)[0].weight
    with open("/proc/self/maps") as maps:
        ranges = [line.split() for line in maps if line.rstrip().endswith("model.safetensors")]
    bounds = [[int(end, 16) for end in fields[0].split("-")] for fields in ranges]
    assert any(low <= table.data_ptr() < high for low, high in bounds)


def test_weights_that_change(resident, ids):
    """In place, or replaced: rows that were kept are not served any more."""
    table = HostEmbedding(20, 4).eval()
    slots = torch.arange(20)
    table.keep(slots, 20)
    with torch.no_grad():
        table.weight.copy_(torch.randn(20, 4))
    assert torch.equal(table(slots), table.weight)
    table.keep(slots, 20)
    table.weight = nn.Parameter(torch.randn(20, 4))
    assert torch.equal(table(slots), table.weight)


def test_over_a_table_in_memory():
    host = HostTable.copy_of(torch.randn(20, 4))
    table = HostEmbedding.over(host).eval()
    assert table.weight.data_ptr() == host.rows.data_ptr() and not table.weight.requires_grad
    assert torch.equal(table(torch.arange(5)), host.rows[:5])
    view = copy.deepcopy(table, {id(table.weight): table.weight})
    assert view.weight.data_ptr() == host.rows.data_ptr()
    assert torch.equal(view(torch.arange(5)), host.rows[:5])


@pytest.mark.gpu
@pytest.mark.parametrize("place", PLACES)
def test_same_logits_on_a_gpu(checkpoint, ids, place):
    ids = ids.cuda()
    models = [
        em.load(checkpoint, device="cuda", dtype=torch.float32, table=table)[0]
        for table in ("device", place)
    ]
    seen: list[dict] = [{}, {}]
    for model, rows in zip(models, seen, strict=True):
        for memory in model.model.memories:
            layer = memory.layer_id
            memory.tap = lambda name, x, rows=rows, layer=layer: rows.setdefault((layer, name), x)
    with torch.no_grad():
        logits = [model(ids).logits for model in models]
    assert all(torch.equal(seen[0][layer, "rows"], seen[1][layer, "rows"]) for layer in (0, 2))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)  # experts are summed in any order
    assert all(table.weight.device.type == "cpu" for table in tables(models[1]))
    assert all(table.weight.is_pinned() == (place == "host") for table in tables(models[1]))
