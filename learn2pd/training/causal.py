"""Train the embedded autoregressive model, APD's verifier, on the same problems and with the same tokenizer as the embedded dLLM."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from learn2pd.training.canvases import CanvasBatch
from learn2pd.training.running import LanguageTraining, Schedule


class CausalTraining(LanguageTraining):
    """Args: model, trained in place; schedule."""

    model: LlamaForCausalLM

    def __init__(self, model: LlamaForCausalLM, schedule: Schedule) -> None:
        super().__init__(model, model.model.layers, schedule)

    def loss(self, batch: CanvasBatch) -> tuple[Tensor, Tensor]:
        """Mean cross entropy per answer token, its first end-of-text included, and the share predicted right."""
        ended = batch.tokens[:, :-1] == self.model.config.eos_token_id
        counted = ~batch.prompt_mask[:, 1:] & ~ended
        hidden = self.model.model(batch.tokens[:, :-1]).last_hidden_state[counted]
        logits = self.model.lm_head(hidden).float()  # [counted, V]
        targets = batch.tokens[:, 1:][counted]
        return functional.cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean()
