"""The training step under plain torch.distributed: policy, reference, checkpoints, export."""
