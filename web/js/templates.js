// The host fits a template to the window, which hides the text of large ones. Those of this pack open as they were saved:
// where they begin, large enough to read.

import { app } from "../../../scripts/app.js";
import { allNodes, isOurs } from "./runs.js";

app.registerExtension({
  name: "jepa-guidance.templates",
  afterConfigureGraph() {
    const view = app.rootGraph.extra?.ds;
    const wanted = app.extensionManager.setting.get("Comfy.EnableWorkflowViewRestore");
    if (!view || !wanted || !allNodes().some(isOurs)) return;
    Object.assign(app.canvas.ds, { scale: view.scale, offset: [...view.offset] });
    app.canvas.setDirty(true, true);
  },
});
