import { defineConfig } from "vite";

// Addresses in what is built are relative: the same folder is served at `/` and from any folder of a static site.
export default defineConfig({
  base: "./",
  // ONNX Runtime's own files are copied beside the page (build.py), not bundled: each browser loads the one it needs.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "import", "default"] },
  worker: { format: "es" },
  build: {
    target: "es2022",
    emptyOutDir: true,
    assetsInlineLimit: 0, // the content security policy allows no fonts or scripts from data addresses
    modulePreload: { polyfill: false },
    license: { fileName: "licenses.txt" },
  },
});
