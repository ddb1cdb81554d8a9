from fitkit.energies.registry import REGISTRY, page


def test_the_table(run):
    lines = run("energies").output.splitlines()
    assert len(lines) == len(REGISTRY) + 1 and lines[0].split() == [
        "id",
        "name",
        "fit",
        "training",
        "derivatives",
        "reduction",
        "used",
        "by",
        "residual",
    ]
    assert next(line for line in lines if " flow_mag " in line).split()[:6] == [
        "E4",
        "flow_mag",
        "yes",
        "yes",
        "automatic",
        "mean",
    ]
    assert [line.split()[3] for line in lines[1:]] == ["yes"] * len(REGISTRY)
    assert next(line for line in lines if " lmk_posmap " in line).split()[2] == "no"


def test_the_page(run):
    assert run("energies", "--markdown").output == page()


def test_one_energy_for_trainings(run):
    out = run("energies", "lmk_posmap").output
    assert "fit        no: a fit has no position maps; a network predicts them" in out
    assert "training   yes, with label `crop_points`; a network that predicts position maps" in out


def test_one_energy(run):
    out = run("energies", "sem_feat").output
    assert (
        out.startswith("E6 sem_feat\n")
        and "fitkit.energies.features.SemanticFeatures" in out
        and "Source: PGN eq. 11" in out
    )
    result = run("energies", "sem_fat")
    assert (
        result.exit_code == 1 and "energies: unknown key 'sem_fat'; did you mean 'sem_feat'?" in result.output
    )
