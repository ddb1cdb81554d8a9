// node build.mjs, after npm ci: bundles three.mjs into ../report/three.min.js, with the licence of three.js at its beginning.
import { readFileSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const { version } = JSON.parse(readFileSync(here("node_modules/three/package.json"), "utf8"));
const licence = readFileSync(here("node_modules/three/LICENSE"), "utf8").trim();
const outfile = here("../report/three.min.js");

await build({
  entryPoints: [here("three.mjs")],
  outfile,
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "THREE",
  target: "es2020",
  charset: "ascii", // whatever encoding a page has
  legalComments: "none", // the whole licence stands in the banner
  banner: { js: `/*! three.js ${version}, https://threejs.org, parts that fitkit's pages use\n\n${licence}\n*/` },
});
const size = statSync(outfile).size;
if (size >= 1e6) throw new Error(`${outfile} has ${size} bytes; expected less than 1 MB`);
console.log(`${outfile}: ${size} bytes`);
