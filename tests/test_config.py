from liveedit.bundle import TensorSpec
from liveedit.config import from_dict, to_dict


def test_a_dynamic_dimension_survives_json() -> None:
    spec = TensorSpec(name="keep_index", dtype="int32", shape=("num_keep", 3))
    assert from_dict(TensorSpec, to_dict(spec)) == spec
