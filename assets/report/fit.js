// The page of a fit: photos under a line that moves, and the face in 3D.
"use strict";

for (const frame of document.querySelectorAll(".compare")) {
  const slider = frame.querySelector("input");
  const move = () => frame.style.setProperty("--at", slider.value);
  slider.addEventListener("input", move);
  move(); // browsers keep the places of sliders when a page is loaded again
}

const stage = document.getElementById("stage");
if (stage) {
  const note = document.getElementById("stage-note");
  showFace(stage).then(
    () => note.remove(),
    (error) => {
      note.textContent = `The face cannot be shown in 3D here (${error.message || error}); subject.glb opens in other viewers.`;
    },
  );
}

async function showFace(stage) {
  const data = JSON.parse(document.getElementById("face-data").textContent);
  const renderer = new THREE.WebGLRenderer({ antialias: true, alpha: true });
  const face = await loadFace(data);
  const scene = new THREE.Scene();
  const camera = new THREE.PerspectiveCamera(24, 1, 0.01, 20);
  const lights = { ambient: new THREE.AmbientLight(), key: new THREE.DirectionalLight(), fill: new THREE.DirectionalLight() };
  lights.key.position.set(-0.6, 0.8, 1);
  lights.fill.position.set(1, 0.1, 0.4);
  camera.add(lights.key, lights.fill); // light comes from where one looks
  scene.add(lights.ambient, camera, face.root);
  stage.prepend(renderer.domElement);
  const controls = new THREE.OrbitControls(camera, renderer.domElement);
  controls.enableZoom = false; // a page that is scrolled past must not zoom

  let asked = false;
  const draw = () => {
    asked = false;
    renderer.render(scene, camera);
  };
  const redraw = () => {
    if (!asked) requestAnimationFrame(draw);
    asked = true;
  };
  controls.addEventListener("change", redraw);
  new ResizeObserver(() => {
    const { clientWidth: width, clientHeight: height } = stage;
    if (!width || !height) return;
    renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    renderer.setSize(width, height, false);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    draw();
  }).observe(stage);

  const look = lookingAt(face, camera, controls);
  look.from(0, 0);
  chooseSurface(face, lights, data, redraw);
  const shapes = moveShapes(face, data, redraw);
  listen(stage, controls, look);
  readError(face, stage, camera, data);
  draw();
  window.fitkit = { face, camera, controls, shapes }; // for those who look behind the page
}

// ---- the mesh ----

async function loadFace(data) {
  const letters = atob(document.getElementById("glb").textContent);
  const packed = Uint8Array.from(letters, (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const gltf = await new THREE.GLTFLoader().parseAsync(await new Response(unpacked).arrayBuffer(), "");
  const parts = [];
  gltf.scene.traverse((node) => {
    if (node.isMesh) parts.push(node);
  });
  const [mesh, ...others] = parts;
  if (!mesh) throw new Error("subject.glb holds no mesh");
  const geometry = mesh.geometry;
  // The parts of a face share their vertices; here they are one mesh.
  geometry.setIndex(parts.flatMap((part) => Array.from(part.geometry.index.array)));
  for (const part of others) part.removeFromParent();
  const names = Object.entries(mesh.morphTargetDictionary || {});
  const targets = geometry.morphAttributes.position || [];
  const face = {
    root: gltf.scene,
    mesh,
    texture: mesh.material.map || null,
    rest: Float32Array.from(geometry.attributes.position.array),
    albedo: geometry.attributes.color || null,
    shapes: new Map(names.map(([name, at]) => [name, moved(targets[at])])),
  };
  // Shapes are added up here: normals have to follow them, and .glb files hold no normals of targets.
  geometry.morphAttributes = {};
  mesh.morphTargetInfluences = mesh.morphTargetDictionary = undefined;
  mesh.frustumCulled = false;
  face.joined = joined(face.rest);
  reshape(face, new Map());
  return face;
}

// The vertices that a target moves, and by how much.
function moved(target) {
  const all = target.array, at = [];
  for (let i = 0; i < all.length; i += 3) if (all[i] || all[i + 1] || all[i + 2]) at.push(i);
  const by = new Float32Array(at.length * 3);
  at.forEach((i, n) => by.set(all.subarray(i, i + 3), 3 * n));
  return { at: Uint32Array.from(at), by };
}

// Number of the first vertex at the place of each one: seams of the texture repeat vertices.
function joined(points) {
  const first = new Map(), out = new Uint32Array(points.length / 3);
  for (let v = 0; v < out.length; v++) {
    const key = `${points[3 * v]},${points[3 * v + 1]},${points[3 * v + 2]}`;
    if (!first.has(key)) first.set(key, v);
    out[v] = first.get(key);
  }
  return out;
}

// Positions and normals of the neutral face plus weight times each shape.
function reshape(face, weights) {
  const geometry = face.mesh.geometry, position = geometry.attributes.position, p = position.array;
  p.set(face.rest);
  for (const [name, weight] of weights) {
    const shape = face.shapes.get(name);
    if (!shape || !weight) continue;
    const { at, by } = shape;
    for (let n = 0; n < at.length; n++) {
      const i = at[n], j = 3 * n;
      p[i] += weight * by[j];
      p[i + 1] += weight * by[j + 1];
      p[i + 2] += weight * by[j + 2];
    }
  }
  const sum = new Float64Array(p.length), corner = geometry.index.array, same = face.joined;
  for (let t = 0; t < corner.length; t += 3) {
    const a = 3 * corner[t], b = 3 * corner[t + 1], c = 3 * corner[t + 2];
    const ux = p[b] - p[a], uy = p[b + 1] - p[a + 1], uz = p[b + 2] - p[a + 2];
    const vx = p[c] - p[a], vy = p[c + 1] - p[a + 1], vz = p[c + 2] - p[a + 2];
    const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx; // length: twice the area
    for (let k = 0; k < 3; k++) {
      const s = 3 * same[corner[t + k]];
      sum[s] += nx;
      sum[s + 1] += ny;
      sum[s + 2] += nz;
    }
  }
  const normal = geometry.attributes.normal, q = normal.array;
  for (let v = 0; v < same.length; v++) {
    const s = 3 * same[v], length = Math.sqrt(sum[s] ** 2 + sum[s + 1] ** 2 + sum[s + 2] ** 2) || 1;
    for (let k = 0; k < 3; k++) q[3 * v + k] = sum[s + k] / length;
  }
  position.needsUpdate = normal.needsUpdate = true;
  geometry.computeBoundingSphere();
}

// ---- what is seen of it ----

function chooseSurface(face, lights, data, redraw) {
  const geometry = face.mesh.geometry, old = face.mesh.material;
  const coloured = face.texture || face.albedo;
  const side = old.side;
  const looks = {
    // Photos carry their own light, so only a touch of shape is added.
    texture: {
      material: new THREE.MeshLambertMaterial({ map: face.texture, vertexColors: !face.texture && !!face.albedo, side }),
      colours: face.albedo,
      light: face.texture ? [0.74, 0.3, 0.06] : [0.35, 0.6, 0.2],
    },
    clay: { material: new THREE.MeshStandardMaterial({ color: 0xc9c1b8, roughness: 0.62, side }), light: [0.3, 0.72, 0.3] },
    bars: {
      material: new THREE.MeshLambertMaterial({ vertexColors: true, side }),
      colours: data.sigma && barColours(data),
      light: [0.62, 0.4, 0.12],
    },
  };
  const legend = document.getElementById("legend");
  const show = (name) => {
    const look = looks[name];
    if (look.colours) geometry.setAttribute("color", look.colours);
    else geometry.deleteAttribute("color");
    face.mesh.material = look.material;
    ["ambient", "key", "fill"].forEach((light, i) => (lights[light].intensity = Math.PI * look.light[i]));
    face.surface = name;
    if (legend) legend.hidden = name !== "bars";
    redraw();
  };
  const choices = [...document.querySelectorAll('input[name="surface"]')];
  for (const choice of choices) choice.addEventListener("change", () => show(choice.value));
  const first = choices.find((choice) => choice.checked) || choices[0];
  if (!coloured && first.value === "texture") choices.find((choice) => choice.value === "clay").checked = true;
  show(coloured ? first.value : "clay");
}

function barColours(data) {
  const colour = new THREE.Color(), last = data.scale.length - 1;
  const steps = data.scale.map(([r, g, b]) => colour.setRGB(r / 255, g / 255, b / 255, THREE.SRGBColorSpace).toArray());
  const out = new Float32Array(3 * data.sigma.length);
  data.sigma.forEach((sigma, v) => {
    const at = Math.min(Math.max(sigma / data.largest, 0), 1) * last, low = Math.min(Math.floor(at), last - 1);
    for (let c = 0; c < 3; c++) out[3 * v + c] = sigma < 0 ? 0.4 : steps[low][c] + (at - low) * (steps[low + 1][c] - steps[low][c]);
  });
  return new THREE.BufferAttribute(out, 3);
}

// The error bar under the pointer.
function readError(face, stage, camera, data) {
  const here = document.getElementById("here");
  if (!here || !data.sigma) return;
  const ray = new THREE.Raycaster(), place = new THREE.Vector2();
  stage.addEventListener("pointermove", (event) => {
    if (face.surface !== "bars" || event.buttons) return;
    const box = stage.getBoundingClientRect();
    place.set((2 * (event.clientX - box.left)) / box.width - 1, 1 - (2 * (event.clientY - box.top)) / box.height);
    ray.setFromCamera(place, camera);
    const hit = ray.intersectObject(face.mesh, false)[0];
    const sigma = hit ? data.sigma[hit.face.a] : -1;
    here.textContent = sigma < 0 ? "" : `here ${sigma.toFixed(2)} mm`;
  });
}

// ---- how it moves ----

function moveShapes(face, data, redraw) {
  const sliders = [...document.querySelectorAll("input[data-shape]")];
  const choice = document.getElementById("expression");
  const bones = face.mesh.skeleton ? face.mesh.skeleton.bones : [];
  const update = () => {
    reshape(face, new Map(sliders.map((s) => [s.dataset.shape, s.valueAsNumber])));
    for (const slider of sliders) {
      const label = slider.parentElement;
      label.querySelector("output").textContent = slider.valueAsNumber.toFixed(2);
      label.classList.toggle("on", slider.valueAsNumber !== 0);
    }
    redraw();
  };
  const take = (value) => {
    const weights = new Map(Object.entries((value !== "" && data.weights && data.weights[value]) || {}));
    for (const slider of sliders) slider.value = weights.get(slider.dataset.shape) || 0;
    const turns = (value !== "" && data.joints && data.joints[value]) || [];
    bones.slice(1).forEach((bone, j) => {
      const [x, y, z] = turns[j] || [0, 0, 0], angle = Math.hypot(x, y, z);
      bone.quaternion.identity();
      if (angle) bone.quaternion.setFromAxisAngle(new THREE.Vector3(x, y, z).divideScalar(angle), angle);
    });
    update();
  };
  for (const slider of sliders) {
    slider.disabled = !face.shapes.has(slider.dataset.shape);
    slider.addEventListener("input", () => {
      choice.value = "own";
      update();
    });
  }
  if (choice) {
    choice.addEventListener("change", () => choice.value !== "own" && take(choice.value));
    document.getElementById("reset").addEventListener("click", () => take((choice.value = "")));
    choice.value = "";
    take("");
  }
  return { take };
}

function lookingAt(face, camera, controls) {
  const box = new THREE.Box3().setFromObject(face.mesh), size = box.getSize(new THREE.Vector3());
  const middle = box.getCenter(new THREE.Vector3());
  const far = (0.49 * Math.max(size.y, size.x, size.z)) / Math.tan((camera.fov * Math.PI) / 360) + size.z / 4;
  controls.minDistance = 0.3 * far;
  controls.maxDistance = 3 * far;
  const offset = new THREE.Spherical(), arm = new THREE.Vector3();
  const settle = () => {
    offset.phi = Math.min(Math.max(offset.phi, 0.05), Math.PI - 0.05);
    offset.radius = Math.min(Math.max(offset.radius, controls.minDistance), controls.maxDistance);
    camera.position.copy(controls.target).add(arm.setFromSpherical(offset));
    controls.update();
  };
  const current = () => offset.setFromVector3(arm.copy(camera.position).sub(controls.target));
  return {
    from(yaw, pitch) {
      controls.target.copy(middle);
      offset.set(far, Math.PI / 2 - pitch, yaw);
      settle();
    },
    turn(yaw, pitch) {
      current();
      offset.theta += yaw;
      offset.phi += pitch;
      settle();
    },
    zoom(factor) {
      current();
      offset.radius *= factor;
      settle();
    },
  };
}

function listen(stage, controls, look) {
  const step = Math.PI / 36, side = Math.PI / 2;
  // The face turns as its own left and right say, as the photos show them.
  const looks = {
    front: () => look.from(0, 0),
    left: () => look.from(side, 0),
    right: () => look.from(-side, 0),
    in: () => look.zoom(0.85),
    out: () => look.zoom(1 / 0.85),
  };
  const keys = {
    ArrowLeft: () => look.turn(step, 0),
    ArrowRight: () => look.turn(-step, 0),
    ArrowUp: () => look.turn(0, step),
    ArrowDown: () => look.turn(0, -step),
    "+": looks.in,
    "=": looks.in,
    "-": looks.out,
    Home: looks.front,
  };
  for (const button of document.querySelectorAll("button[data-look]")) button.addEventListener("click", looks[button.dataset.look]);
  stage.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  stage.addEventListener("pointerdown", () => stage.focus({ preventScroll: true }));
  stage.addEventListener("focus", () => (controls.enableZoom = true));
  stage.addEventListener("blur", () => (controls.enableZoom = false));
}
