"""Runs models. The flow of a request: submit -> batch -> worker -> reply.

1. `engine.InferenceEngine.embed` or `classify` takes the loaded model and calls `scheduler.Scheduler.infer`.
2. Submit: the scheduler admits the request or refuses it, tokenizes its inputs and queues one row for each.
3. Batch: a free worker thread picks rows of similar length, of any request for the same model (`scheduler.pack`).
4. Worker: it runs `forward` of the model on them (`torch_models.TorchModel`), one batch at a time.
5. Reply: when all rows of a request are done, its future on the event loop resolves, and `infer` returns a `Reply`.

`types` defines the values and errors; it needs no torch. `models` adds and checks model folders.
`gpu_targets` says which GPUs a slimmed image has code for. Only `torch_models` imports torch.
"""
