/*
 * An element on a node that behaves in the canvas renderer and in Nodes 2.0 alike.
 *
 * A DOM widget is the one thing that both place and scale, so nothing in this pack draws on the canvas.
 */
import { app } from "../../../scripts/app.js";

/** Every node of this pack, those to come included: they need no list here. */
export function isOurs(node) {
  return !!node.constructor.nodeData?.category?.startsWith("LyCORIS");
}

/** A class, not inline styles, so that a user's own CSS can change it. The colours are the theme's. */
export function addStyle(text) {
  const style = document.createElement("style");
  style.textContent = text;
  document.head.append(style);
}

/** A box of `children` that keeps the mouse's and the wheel's events to itself. */
export function boxOf(className, ...children) {
  const box = document.createElement("div");
  // The second class is Nodes 2.0's: it gives the box what a taller node has to spare.
  box.className = `${className} widget-expands`;
  box.append(...children);
  // What the canvas renderer calls at a click elsewhere, so that the keys are the canvas' again.
  box.blur = () => box.contains(document.activeElement) && document.activeElement.blur();
  // Nodes 2.0 would drag the node instead of selecting text.
  box.addEventListener("pointerdown", (event) => event.button === 0 && event.stopPropagation());
  // Nodes 2.0's mark of something that scrolls (newer pages ask for a click into it first).
  box.dataset.captureWheel = "true";
  box.addEventListener("wheel", (event) => {
    event.stopPropagation();
    if (!event.ctrlKey && !event.metaKey) return;
    // Pinching means the canvas everywhere; the browser would zoom the whole page.
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
  return box;
}

/** The element of the node's widget `name`, which `make` makes where there is none yet. */
export function elementOf(node, name, make, [width, height]) {
  const known = node.widgets?.find((widget) => widget.name === name);
  if (known) return takePlace(known.element);
  const widget = node.addDOMWidget(name, name, make(), {
    serialize: false, // in what is sent to the server
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false; // in the saved workflow
  widget.element.lycorisOwner = node;
  setTimeout(() => takePlace(widget.element)); // when the node has its id
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], node.computeSize()[1])]);
  return widget.element;
}

/**
 * Puts `element` where the page still shows that of an earlier node. When a workflow is opened again (also by
 * undo), Nodes 2.0 goes on with what it shows of a node of the same id, and never looks at the new one's.
 */
function takePlace(element) {
  const node = element.lycorisOwner;
  for (const other of element.isConnected ? [] : document.getElementsByClassName(element.className)) {
    const { id, graph } = other.lycorisOwner ?? {};
    if (id === node.id && graph?.getNodeById(id) !== other.lycorisOwner) {
      other.replaceWith(element);
      break;
    }
  }
  return element;
}

/** Calls `show(node, output)` after each run. */
export function whenExecuted(node, show) {
  // Called after each run, also when the result came from the cache.
  const executed = node.onExecuted;
  node.onExecuted = function (output) {
    executed?.apply(this, arguments);
    show(this, output);
  };
}

/**
 * Calls `show(node, output)` for every node that `outputs` has something of: another tab, a job of the queue,
 * undo. Nodes in a subgraph are known there by "<id of the subgraph>:<id of the node>".
 */
export function whenRestored(outputs, show) {
  const root = app.rootGraph ?? app.graph;
  for (const graph of [root, ...(root.subgraphs?.values() ?? [])]) {
    const prefix = graph === root ? "" : `${graph.id}:`;
    for (const node of graph.nodes) show(node, outputs[prefix + node.id]);
  }
}
