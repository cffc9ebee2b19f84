"""What `import densenet_jax` needs and does."""

import subprocess
import sys

SCRIPT = """
import sys

EXTRAS = {'h5py', 'safetensors', 'huggingface_hub', 'tensorflow_datasets', 'grain', 'cv2', 'PIL',
          'sklearn', 'ml_collections', 'torch', 'tensorflow'}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in EXTRAS:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import densenet_jax
import jax._src.xla_bridge as bridge
assert not bridge._backends, 'a device was touched'
assert 'densenet121' in densenet_jax.list_models()
model = densenet_jax.create_model('densenet121')
assert not bridge._backends, 'a device was touched'
"""


def test_import_needs_jax_flax_and_numpy_and_touches_no_device():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
