"""peft attaches by name: LoRA on the projections, prompt tuning in front of the text."""

from __future__ import annotations

import pytest
import torch
from tiny_models import batch_of, row, tiny_model, train_randomly

peft = pytest.importorskip("peft", reason="peft comes with the lora extra")


def test_lora_attaches_by_name_changes_nothing_at_first_and_then_learns() -> None:
    model, batch = tiny_model(), batch_of([row(1, 9, 0), row(1, 7, 1)])
    model.add_image_experts(2)
    train_randomly(model)
    with torch.no_grad():
        before = model(**batch)
    names = ["q_proj", "v_proj", "mlp.down_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names, lora_dropout=0.0))
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trainable) == 3 * 3 * 2, "three layers, three names, two factors"
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, before.logits, rtol=1e-5, atol=1e-5)
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(4):
        optimiser.zero_grad()
        adapted(**batch).loss.backward()
        optimiser.step()
    with torch.no_grad():
        assert adapted(**batch).loss < before.loss
        merged = adapted.merge_and_unload()
        assert merged(**batch).loss < before.loss


def test_prompt_tuning_puts_its_tokens_before_the_text() -> None:
    # peft takes the first parameter with as many rows as the vocabulary for the embedding: 70 is nothing else's width.
    model, batch = tiny_model(text={"vocab_size": 70}), batch_of([row(0, 9, 0), row(0, 7, 1)])
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=32, num_layers=3, num_attention_heads=4
    )
    adapted = peft.get_peft_model(model, config)
    out = adapted(**batch)
    assert out.logits.shape[1] == batch["input_ids"].shape[1] + 3
    out.loss.backward()
    trained = [name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.any()]
    assert trained
    assert all("prompt" in name for name in trained)
