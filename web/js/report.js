/*
 * Shows a node's text on the node itself: what it returns as {"ui": {"text": [text]}}.
 *
 * ComfyUI shows such a text on its own nodes only.
 */
import { app } from "../../../scripts/app.js";
import { addStyle, boxOf, elementOf, isOurs, whenExecuted, whenRestored } from "./box.js";

const WIDGET = "lycoris_report";
const MIN_WIDTH = 400;
const MIN_HEIGHT = 130;

addStyle(`
  .lycoris-report-box { position: relative; box-sizing: border-box; width: 100%; height: 100%; min-height: ${MIN_HEIGHT}px; }
  .lycoris-report {
    position: absolute; inset: 0; width: 100%; height: 100%; box-sizing: border-box; margin: 0; padding: 6px 8px;
    border: 1px solid var(--border-color); border-radius: 4px; resize: none; overflow: auto;
    font: 11px/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
    color: var(--input-text); background: var(--comfy-input-bg);
  }
  .lycoris-report:focus { outline: none; border-color: var(--descrip-text); }
  .lycoris-report-copy {
    position: absolute; top: 5px; right: 5px; padding: 1px 7px; opacity: 0; cursor: pointer;
    border: 1px solid var(--border-color); border-radius: 4px; font: 11px sans-serif;
    color: var(--descrip-text); background: var(--comfy-menu-bg);
  }
  .lycoris-report-box:hover .lycoris-report:not(:placeholder-shown) ~ .lycoris-report-copy,
  .lycoris-report-copy:focus-visible { opacity: 1; }
`);

function element() {
  // A read-only textarea and not a <pre>: there, the page leaves selecting and the keys (Ctrl+A, Ctrl+C, Delete)
  // to the browser, where it would otherwise copy or delete nodes.
  const text = document.createElement("textarea");
  text.className = "lycoris-report";
  text.readOnly = true;
  text.spellcheck = false;
  text.placeholder = "The report appears here when the workflow has run.";
  text.setAttribute("aria-label", "LyCORIS report");

  const copy = document.createElement("button");
  copy.className = "lycoris-report-copy";
  copy.type = "button";
  copy.textContent = "copy";
  copy.addEventListener("click", () => {
    text.select();
    // Old, but navigator.clipboard does not exist where ComfyUI is opened from another machine over plain http.
    document.execCommand("copy");
  });

  return boxOf("lycoris-report-box", text, copy);
}

/** The node's box of text, which is made where there is none yet. */
function reportOf(node) {
  return elementOf(node, WIDGET, element, [MIN_WIDTH, MIN_HEIGHT]);
}

/** Saved values up to the first that is none. */
function upToHole(values) {
  const hole = Array.from(values).findIndex((value) => value == null);
  return hole < 0 ? values : values.slice(0, hole);
}

function show(node, output) {
  // Not .value: as its content, the text is also in the page's text.
  if (output?.text && isOurs(node)) reportOf(node).firstChild.textContent = [output.text].flat().join("\n");
}

app.registerExtension({
  name: "LyCORIS.Report",

  nodeCreated(node) {
    if (!isOurs(node)) return;
    // Output nodes have something to say at every run, so their box is there before the first one.
    if (node.constructor.nodeData.output_node) reportOf(node);

    // The page saves values by position: the box leaves a hole there, and only the page's own text of the last
    // run stands after it. Neither may become the value of a widget that this node has got since.
    const defaults = new Map(node.widgets?.map((widget) => [widget, widget.value]));
    const serialized = node.onSerialize;
    node.onSerialize = function (info) {
      serialized?.apply(this, arguments);
      if (info.widgets_values) info.widgets_values = upToHole(info.widgets_values);
    };
    const configured = node.onConfigure;
    node.onConfigure = function (info) {
      const count = upToHole(info.widgets_values ?? []).length;
      const saved = (this.widgets ?? []).filter((widget) => widget.serialize !== false);
      for (const widget of saved.slice(count)) if (defaults.has(widget)) widget.value = defaults.get(widget);
      configured?.apply(this, arguments);
    };

    whenExecuted(node, show);
  },

  onNodeOutputsUpdated(outputs) {
    whenRestored(outputs, show);
  },
});
