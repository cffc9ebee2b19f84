"""What `import densenet_jax` needs and does."""

import subprocess
import sys

SCRIPT = """
import sys

EXTRAS = {'h5py', 'safetensors', 'huggingface_hub', 'tensorflow_datasets', 'grain', 'cv2', 'PIL',
          'sklearn', 'ml_collections', 'torch', 'tensorflow'}
HIDDEN = {'jax.experimental.pallas'}  # only NVIDIA GPUs need it

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in EXTRAS or name in HIDDEN:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import densenet_jax
import jax._src.xla_bridge as bridge
assert not bridge._backends, 'a device was touched'
assert 'densenet121' in densenet_jax.list_models()
model = densenet_jax.create_model('densenet121', block_sizes=(1, 1), num_classes=2)
assert not bridge._backends, 'a device was touched'

import jax
images = jax.ShapeDtypeStruct((2, 32, 32, 3), 'float32')
variables = jax.eval_shape(model.init, jax.random.key(0), images)
train = lambda v, x: model.apply(v, x, train=True, mutable=['batch_stats'])
jax.eval_shape(train, variables, images)
assert not set(sys.modules) & (EXTRAS | HIDDEN)
"""


def test_models_need_jax_flax_and_numpy_and_import_touches_no_device():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
