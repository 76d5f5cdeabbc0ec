// Fills in a run's name and its tags. Copy this folder to begin a plugin of your own.
//
// The manifest, `run-name.toml` beside `run-name.wasm`:
//
//     [settings]
//     project = "lora"

import * as host from "taxiway:plugin/host@0.1.0";

const readSettings = (text) => JSON.parse(text || "{}");

export const metadata = {
  describe() {
    const schema = { type: "object", required: ["project"], properties: { project: { type: "string" } } };
    return {
      name: "run-name",
      version: "0.1.0",
      summary: "Fills in a run's name and labels its project",
      settingsSchema: JSON.stringify(schema),
      details: "{}",
    };
  },

  checkSettings(text) {
    if (typeof readSettings(text).project === "string") return [];
    return [{
      severity: "error",
      code: "bad-setting",
      path: "/project",
      message: "project must be a text",
      help: 'write project = "NAME" under [settings]',
    }];
  },
};

export const rewrite = {
  // Rewriting twice must change nothing more: what is there stays.
  rewrite(job, context) {
    const { project } = readSettings(host.settings());
    const config = JSON.parse(job.config);
    const labels = [["project", project]];
    if (config.run_name !== undefined) return { env: [], labels };
    config.run_name = `${project}-${job.name}`;
    host.log("debug", `named ${config.run_name} at ${context.stage}`);
    return { config: JSON.stringify(config), env: [], labels };
  },
};
