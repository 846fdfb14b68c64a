"""Low-rank adapters on the layers of a model: this decoder or any ``torch.nn.Module`` with linear layers.

To be read in this order: ``config`` (what is wanted), ``lora`` (one update of one weight), ``layers`` (a layer with
adapters), ``inject`` (adapters put into a model), ``switch`` (which of them is used), ``merge`` (an update added to the
weights). ``llmfast.finetuning`` has the public names in one place.
"""
