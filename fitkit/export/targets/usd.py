"""For tools that read OpenUSD: Unreal, Maya, Houdini, Omniverse, Blender.

Source: the schemas UsdSkel and UsdPreviewSurface, openusd.org. USD is written by its own library, usd-core.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from fitkit.errors import InputError
from fitkit.export.arkit import write_names
from fitkit.export.gltf import STILL_MM
from fitkit.export.morphs import FRAMES_PER_SECOND, Morph, Track, morphs_of, track_of
from fitkit.export.rig import Rig, rig_of
from fitkit.export.targets import ExportOptions
from fitkit.export.texture import TEXTURE, write_texture
from fitkit.export.topology import Part, Topology, topology_of, with_quads
from fitkit.fitting.result import FitResult
from fitkit.models.skinned import SkinnedModel

CM = 0.1  # in a millimetre; Unreal and Maya count in centimetres


def write_usd(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """`subject.usdc`: the neutral face with a blend shape for each expression, its joints, and an animation
    with one frame for each photo; `texture.png`; `arkit_names.json`. Centimetres, y up."""
    if importlib.util.find_spec("pxr") is None:
        raise InputError("export: usd needs the package usd-core; pip install 'fitkit[usd]'")
    from pxr import Usd, UsdGeom, UsdSkel

    notes: list[str] = []
    model, morphs = result.personal_model, morphs_of(result.model, options.arkit_names)
    png = write_texture(result, folder, notes)
    stage = Usd.Stage.CreateNew(str(folder / "subject.usdc"))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    top = UsdSkel.Root.Define(stage, "/subject")
    stage.SetDefaultPrim(top.GetPrim())
    shown = with_quads(result.model, topology_of(result.model, options.vertices, notes))
    neutral = CM * result.neutral.detach().double().numpy()
    mesh = _mesh(stage, neutral, shown)
    rig = rig_of(model, result.neutral.detach())
    joints = _joints(rig)
    skeleton = UsdSkel.Skeleton.Define(stage, "/subject/skeleton")
    _bind(stage, mesh, skeleton, rig, shown, joints)
    _blend_shapes(stage, mesh, shown, morphs)
    if result.state.camera.kind == "perspective":
        _animate(stage, skeleton, joints, CM * rig.offsets, morphs, track_of(result, morphs))
    else:
        notes.append("no animation: orthographic cameras do not say where the head is")
    _materials(stage, mesh, shown, None if png is None else f"./{TEXTURE}")
    if isinstance(model, SkinnedModel) and model.pose_basis is not None:
        notes.append("USD has no place for the corrective shapes of turned joints; they are left out")
    _save(stage)
    write_names([m.name for m in morphs], options.arkit_names, folder / "arkit_names.json")
    return notes


def _mesh(stage: Any, neutral: np.ndarray, shown: Topology) -> Any:
    from pxr import Sdf, UsdGeom, Vt

    mesh = UsdGeom.Mesh.Define(stage, "/subject/face")
    faces = [some for number in range(len(shown.parts)) for some in shown.faces(number)]
    counts = np.concatenate([np.full(len(corner), corner.shape[1], np.int32) for corner, _ in faces])
    corners = np.concatenate([corner.reshape(-1) for corner, _ in faces]).astype(np.int32)
    points = neutral[shown.vertex].astype(np.float32)
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
    mesh.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([points.min(0), points.max(0)])))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(counts))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(corners))
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    if shown.uv is not None:
        rows = np.concatenate([uv.reshape(-1) for _, uv in faces if uv is not None]).astype(np.int32)
        kinds = Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
        st = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("st", *kinds)
        st.Set(Vt.Vec2fArray.FromNumpy(shown.uv.astype(np.float32)))
        st.SetIndices(Vt.IntArray.FromNumpy(rows))
    return mesh


def _joints(rig: Rig) -> list[str]:
    """Paths of the joints from the root on."""
    from pxr import Tf

    paths = [rig.names[0]]
    for name, parent in zip(rig.names[1:], rig.parents[1:]):
        paths.append(f"{paths[parent]}/{Tf.MakeValidIdentifier(name)}")
    return paths


def _at(places: np.ndarray) -> Any:
    """Translations as matrices of USD, whose points are rows."""
    from pxr import Gf, Vt

    return Vt.Matrix4dArray([Gf.Matrix4d(1).SetTranslate(Gf.Vec3d(*map(float, p))) for p in places])


def _bind(stage: Any, mesh: Any, skeleton: Any, rig: Rig, shown: Topology, joints: list[str]) -> None:
    """Tie the mesh to the skeleton with all weights."""
    from pxr import UsdSkel, Vt

    skeleton.CreateJointsAttr(joints)
    skeleton.CreateBindTransformsAttr(_at(CM * rig.places))
    skeleton.CreateRestTransformsAttr(_at(CM * rig.offsets))
    binding = UsdSkel.BindingAPI.Apply(mesh.GetPrim())
    binding.CreateSkeletonRel().SetTargets([skeleton.GetPath()])
    weights = rig.weights[shown.vertex].astype(np.float32)
    index = np.tile(np.arange(len(joints), dtype=np.int32), len(weights))
    binding.CreateJointIndicesPrimvar(False, len(joints)).Set(Vt.IntArray.FromNumpy(index))
    binding.CreateJointWeightsPrimvar(False, len(joints)).Set(Vt.FloatArray.FromNumpy(weights.reshape(-1)))


def _blend_shapes(stage: Any, mesh: Any, shown: Topology, morphs: list[Morph]) -> None:
    """One blend shape for each morph target, of the vertices that it moves."""
    from pxr import Tf, UsdSkel, Vt

    shapes: list[Any] = []
    for k, morph in enumerate(morphs):
        path = mesh.GetPath().AppendChild(Tf.MakeValidIdentifier(morph.name))
        if path in shapes:  # names that differ by signs that USD does not take
            path = mesh.GetPath().AppendChild(f"{path.name}_{k}")
        shape = UsdSkel.BlendShape.Define(stage, path)
        delta = morph.delta[shown.vertex]
        moved = (np.abs(delta).max(1) > STILL_MM).nonzero()[0].astype(np.int32)
        shape.CreateOffsetsAttr(Vt.Vec3fArray.FromNumpy((CM * delta[moved]).astype(np.float32)))
        shape.CreatePointIndicesAttr(Vt.IntArray.FromNumpy(moved))
        shapes.append(shape.GetPath())
    binding = UsdSkel.BindingAPI(mesh.GetPrim())
    binding.CreateBlendShapesAttr([m.name for m in morphs])
    binding.CreateBlendShapeTargetsRel().SetTargets(shapes)


def _save(stage: Any) -> None:
    from pxr import Tf

    try:
        whole = stage.GetRootLayer().Save()
    except Tf.ErrorException as error:
        raise OSError(f"OpenUSD: {' '.join(str(error).split()):.200}") from error
    if not whole:
        raise OSError("OpenUSD could not write the file")


def _animate(
    stage: Any, skeleton: Any, joints: list[str], rest: np.ndarray, morphs: list[Morph], track: Track
) -> None:
    """Frames 0, 1, ... show the photos; the root is moved as the head is. rest: [J, 3] cm, where the joints
    are within their parents."""
    from pxr import Gf, UsdSkel, Vt
    from scipy.spatial.transform import Rotation

    frames = len(track.weights)
    stage.SetTimeCodesPerSecond(FRAMES_PER_SECOND)
    stage.SetStartTimeCode(0)
    stage.SetEndTimeCode(frames - 1)
    animation = UsdSkel.Animation.Define(stage, "/subject/photos")
    animation.CreateJointsAttr(joints)
    animation.CreateBlendShapesAttr([m.name for m in morphs])
    animation.CreateScalesAttr(Vt.Vec3hArray([Gf.Vec3h(1)] * len(joints)))
    turn = np.tile(np.eye(3), (frames, len(joints), 1, 1))
    turn[:, 0] = track.rotation
    if track.joints is not None:
        turn[:, 1:] = track.joints
    moved = np.tile(rest, (frames, 1, 1))
    moved[:, 0] = CM * track.translation + track.rotation @ rest[0]
    quaternions = Rotation.from_matrix(turn.reshape(-1, 3, 3)).as_quat().reshape(frames, -1, 4)
    rotations, translations = animation.CreateRotationsAttr(), animation.CreateTranslationsAttr()
    weights = animation.CreateBlendShapeWeightsAttr()
    for t in range(frames):
        rotations.Set(Vt.QuatfArray([Gf.Quatf(q[3], q[0], q[1], q[2]) for q in quaternions[t].tolist()]), t)
        translations.Set(Vt.Vec3fArray.FromNumpy(moved[t].astype(np.float32)), t)
        weights.Set(Vt.FloatArray.FromNumpy(track.weights[t].astype(np.float32)), t)
    binding = UsdSkel.BindingAPI.Apply(skeleton.GetPrim())
    binding.CreateAnimationSourceRel().SetTargets([animation.GetPath()])


def _materials(stage: Any, mesh: Any, shown: Topology, texture: str | None) -> None:
    """A UsdPreviewSurface for each part with the texture, or in its plain colour. Of several parts, subsets
    of the faces of the one mesh are bound to them."""
    from pxr import UsdGeom, UsdShade, Vt

    materials = [_material(stage, part, texture) for part in shown.parts]
    if len(materials) == 1:
        UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(materials[0])
        return
    binding = UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim())
    first = 0
    for number, (part, material) in enumerate(zip(shown.parts, materials)):
        last = first + sum(len(corner) for corner, _ in shown.faces(number))
        faces = Vt.IntArray.FromNumpy(np.arange(first, last, dtype=np.int32))
        first = last
        subset = binding.CreateMaterialBindSubset(part.name, faces)
        UsdShade.MaterialBindingAPI.Apply(subset.GetPrim()).Bind(material)
    binding.SetMaterialBindSubsetsFamilyType(UsdGeom.Tokens.partition)


def _material(stage: Any, part: Part, texture: str | None) -> Any:
    from pxr import Gf, Sdf, UsdShade

    path = f"/subject/materials/{part.name}"

    def shader(name: str, kind: str) -> Any:
        made = UsdShade.Shader.Define(stage, f"{path}/{name}")
        made.CreateIdAttr(kind)
        return made

    types = Sdf.ValueTypeNames
    material = UsdShade.Material.Define(stage, path)
    surface = shader("surface", "UsdPreviewSurface")
    surface.CreateInput("roughness", types.Float).Set(part.roughness)
    color = surface.CreateInput("diffuseColor", types.Color3f)
    color.Set(Gf.Vec3f(*part.color))
    if texture is not None:
        place = shader("place", "UsdPrimvarReader_float2")
        place.CreateInput("varname", types.String).Set("st")
        picture = shader("picture", "UsdUVTexture")
        picture.CreateInput("file", types.Asset).Set(texture)
        picture.CreateInput("sourceColorSpace", types.Token).Set("sRGB")
        place_output = place.CreateOutput("result", types.Float2)
        picture.CreateInput("st", types.Float2).ConnectToSource(place_output)
        color.ConnectToSource(picture.CreateOutput("rgb", types.Float3))
    material.CreateSurfaceOutput().ConnectToSource(surface.CreateOutput("surface", types.Token))
    return material
