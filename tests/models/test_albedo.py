from dataclasses import replace

from helpers import tiny_model

from fitkit.models.appearance import default_albedo


def test_models_without_albedo_get_plain_colours_by_region():
    model = replace(tiny_model(), albedo_mean=None, region_names=("face", "teeth"))
    colours = default_albedo(model)
    assert colours.shape == (model.num_vertices, 3)
    teeth = model.region.numpy() == 1
    assert colours[teeth].mean() > colours[~teeth].mean()
