// Makes run-name.wasm of plugin.js.

import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { componentize } from "@bytecodealliance/componentize-js";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const source = await readFile(here("plugin.js"), "utf8");
const { component } = await componentize(source, { witPath: here("../../../wit"), worldName: "rewriter" });
await writeFile(here("run-name.wasm"), component);
console.log(`run-name.wasm: ${component.length} bytes`);
