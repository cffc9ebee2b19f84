"""Configuration of test_processes.py: tiny, and in float64, so that devices do not matter."""

from densenet_jax.configs import default


def get_config():
    config = default.get_config()
    config.model.name = "densenet_bc_100_12"
    config.model.block_sizes = (1, 1)
    config.model.growth_rate = 4
    config.model.stem_features = 8
    config.model.dtype = config.model.param_dtype = "float64"
    config.data.update(
        name="digits",
        eval_split="test",
        image_size=8,
        channels=1,
        random_crop=False,
        mean=(0.3,),
        std=(0.37,),
    )
    # A learning rate that changes is computed in float32, whose last bit is the compiler's.
    config.optimizer.schedule = "constant"
    config.optimizer.learning_rate = 0.05
    config.batch_size = 16
    config.eval_batch_size = 120
    config.total_steps = 24
    config.log_every = 1
    config.eval_every_epochs = 0.2
    config.checkpoint_every_steps = 3
    return config
