/*
 * The panel on Inspect LyCORIS: its heat map to point at, sort, filter, and to set multipliers on.
 *
 * It is an ordinary table of the page, so that the keyboard, screen readers and the theme do what they do
 * everywhere. Rows are blocks of the model, columns kinds of layers. What it is made of is the node's JSON
 * (web/docs/InspectLyCORIS.md describes it), and what comes out is a text of rules as Load LyCORIS and others
 * take it in `multipliers`.
 */
import { app } from "../../../scripts/app.js";
import { addStyle, boxOf, elementOf, whenExecuted, whenRestored } from "./box.js";
import "./report.js"; // whose box is above the panel

const NODE = "InspectLyCORIS";
const WIDGET = "lycoris_panel";
const SIZE = [520, 330];
/** Where the page keeps what was set on a node, with the workflow. */
const KEPT = "lycoris_multipliers";
/** Widgets that take the rules. */
const TARGET = "multipliers";

addStyle(`
  .lycoris-panel-box { position: relative; width: 100%; height: 100%; min-height: ${SIZE[1]}px; }
  .lycoris-panel {
    position: absolute; inset: 0; display: flex; flex-direction: column; gap: 4px; box-sizing: border-box;
    padding: 6px; border: 1px solid var(--border-color); border-radius: 4px; overflow: hidden;
    font: 12px/1.4 sans-serif; color: var(--input-text); background: var(--comfy-input-bg);
  }
  .lycoris-panel-bar { display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; }
  .lycoris-panel-bar label { display: flex; gap: 4px; align-items: center; }
  .lycoris-panel-box :is(input, select, button) {
    font: inherit; color: var(--input-text); background: var(--comfy-menu-bg);
    border: 1px solid var(--border-color); border-radius: 4px; padding: 1px 5px;
  }
  .lycoris-panel-box button { cursor: pointer; }
  .lycoris-panel-box :is(input, select, button, td):focus-visible { outline: 2px solid var(--input-text); outline-offset: -1px; }
  .lycoris-panel-box input[type="search"] { flex: 1; min-width: 90px; }
  .lycoris-panel-box input[type="number"] { width: 58px; }
  .lycoris-panel-rules { flex: 1; min-width: 120px; }
  .lycoris-panel-scroll { flex: 1; min-height: 120px; overflow: auto; }
  .lycoris-panel-box table { border-collapse: separate; border-spacing: 1px; width: 100%; }
  .lycoris-panel-box th { position: sticky; z-index: 1; background: var(--comfy-input-bg); font-weight: normal; padding: 0; }
  .lycoris-panel-box thead th { top: 0; }
  .lycoris-panel-box tbody th { left: 0; text-align: left; }
  .lycoris-panel-box thead th:first-child { left: 0; z-index: 2; }
  .lycoris-panel-box th button { width: 100%; white-space: nowrap; padding: 0 2px; font-size: 11px; border-color: transparent; background: none; text-align: inherit; }
  .lycoris-panel-box th button[aria-pressed="true"] { border-color: var(--input-text); font-weight: bold; }
  .lycoris-panel-box td { min-width: 30px; height: 19px; padding: 0 1px; text-align: center; cursor: pointer; font-size: 10px; }
  .lycoris-panel-status { min-height: 3.9em; max-height: 3.9em; overflow: auto; font-size: 11px; line-height: 1.3; white-space: pre-line; }
`);

// ---- what is shown ----------------------------------------------------------------------------------------

const MEASURES = {
  energy: {
    title: "share of energy",
    of: (layers, all) => sum(layers, energyOf) / all,
    text: (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`,
    known: (layer) => layer.norm != null,
  },
  norm: {
    title: "norm ‖ΔW‖",
    of: (layers) => Math.sqrt(sum(layers, energyOf)),
    text: short,
    known: (layer) => layer.norm != null,
  },
  relative: {
    title: "‖ΔW‖/‖W‖, the largest",
    of: (layers) => Math.max(...layers.map((layer) => layer.relative)),
    text: (value) => `${(100 * value).toPrecision(2)}%`,
    known: (layer) => layer.relative != null,
  },
  rank: {
    title: "effective rank, mean",
    of: (layers) => sum(layers, (layer) => layer.effective_rank) / layers.length,
    text: short,
    known: (layer) => layer.effective_rank != null,
  },
};
const ORDERS = {
  model: { title: "as in the model", by: (a, b) => a.place - b.place },
  strong: { title: "strongest first", by: (a, b) => b.total - a.total },
  weak: { title: "weakest first", by: (a, b) => a.total - b.total },
};
// The colours of matplotlib's cividis, which the colour-blind tell apart, from little to much.
const CIVIDIS = [[0, 34, 78], [26, 56, 111], [65, 77, 107], [99, 99, 109], [124, 123, 120], [154, 149, 119], [188, 175, 111], [221, 203, 93], [254, 232, 56]];

function sum(items, value) {
  return items.reduce((total, item) => total + value(item), 0);
}

function energyOf(layer) {
  return (layer.norm ?? 0) ** 2;
}

function short(value) {
  return value === 0 ? "0" : Number(value.toPrecision(3)).toString();
}

function byNumber(a, b) {
  return a.localeCompare(b, "en", { numeric: true });
}

/** [background, text] for a value between the smallest and the largest, on a logarithmic scale. */
function colours(value, low, high) {
  const place = high > low ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low)) : 1;
  const at = Math.min(Math.max(place, 0), 1) * (CIVIDIS.length - 1);
  const [from, to] = [CIVIDIS[Math.floor(at)], CIVIDIS[Math.ceil(at)]];
  const rgb = from.map((part, index) => Math.round(part + (to[index] - part) * (at % 1)));
  const [red, green, blue] = rgb.map((part) => (part / 255) ** 2.2);
  const light = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return [`rgb(${rgb.join(",")})`, light > 0.18 ? "#000" : "#fff"]; // whichever contrasts more
}

// ---- rules ------------------------------------------------------------------------------------------------

/** {name: multiplier} of blocks and kinds as the text of rules; neighbouring blocks of one multiplier as a range. */
export function rulesOf(multipliers) {
  const rules = [];
  for (const name of Object.keys(multipliers).sort(byNumber)) {
    const value = multipliers[name];
    const [, stack, number] = name.match(/^(.*)\.(\d+)$/) ?? [];
    const last = rules.at(-1);
    if (stack && last?.stack === stack && last.value === value && last.end + 1 === Number(number)) last.end++;
    else rules.push({ name, stack, value, start: Number(number), end: Number(number) });
  }
  return rules
    .map(({ name, stack, value, start, end }) => `${end > start ? `${stack}.${start}-${end}` : name}=${value}`)
    .join(", ");
}

/**
 * Widgets that take rules for the stack that `node` looks at: [[title, widget]]. That of the node which makes the stack,
 * else those of all others that use it: rules at both would count twice.
 */
function targetsOf(node) {
  const slot = node.inputs?.findIndex((input) => input.name === "lycoris");
  const source = slot >= 0 ? node.getInputNode(slot) : null;
  if (!source) return [];
  const graph = node.graph;
  const others = (source.outputs ?? [])
    .flatMap((output) => output.links ?? [])
    .map((id) => graph.getLink?.(id) ?? graph.links.get?.(id) ?? graph.links[id])
    .map((link) => link && graph.getNodeById(link.target_id));
  const among = (nodes) =>
    [...new Set(nodes)]
      .map((other) => [other?.title, other?.widgets?.find((widget) => widget.name === TARGET)])
      .filter(([, widget]) => widget);
  const own = among([source]);
  return own.length ? own : among(others);
}

// ---- the panel --------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function choice(label, options) {
  const select = element("select", { "aria-label": label });
  for (const [value, { title }] of Object.entries(options)) select.append(element("option", { value }, title));
  return select;
}

function bar(...children) {
  return element("div", { className: "lycoris-panel-bar" }, ...children);
}

class Panel {
  constructor(node) {
    this.node = node;
    this.layers = [];
    this.multipliers = { ...(node.properties?.[KEPT] ?? {}) };
    this.measure = choice("What the colours show", MEASURES);
    this.order = choice("Order of the blocks", ORDERS);
    this.filter = element("input", { type: "search", placeholder: "filter: block, kind, layer", "aria-label": "Filter layers" });
    this.table = element("table", { role: "grid", "aria-label": "Strength by block of the model and kind of layer" });
    this.scroll = element("div", { className: "lycoris-panel-scroll" }, this.table);
    this.status = element("div", { className: "lycoris-panel-status", role: "status" });
    this.brush = element("input", { type: "number", value: "0", step: "0.05", min: "-10", max: "10" });
    this.rules = element("input", { className: "lycoris-panel-rules", readOnly: true, placeholder: "click a block or a kind", "aria-label": "Multipliers as text" });
    this.copy = element("button", { type: "button" }, "copy");
    this.send = element("button", { type: "button", title: "Write them into the node that loads or applies this stack" }, "send");
    this.clear = element("button", { type: "button" }, "clear");
    const top = bar(element("label", {}, "show", this.measure), element("label", {}, "order", this.order), this.filter);
    const brush = element("label", { title: "What a click on a block or a kind sets it to; a second click takes it back" }, "multiplier", this.brush);
    const bottom = bar(brush, this.rules, this.copy, this.send, this.clear);
    this.box = boxOf("lycoris-panel-box", element("div", { className: "lycoris-panel" }, top, this.scroll, this.status, bottom));
    this.box.panel = this;
    this.measure.addEventListener("change", () => this.draw());
    this.order.addEventListener("change", () => this.draw());
    this.filter.addEventListener("input", () => this.draw());
    this.copy.addEventListener("click", () => this.copyRules());
    this.send.addEventListener("click", () => this.sendRules());
    this.clear.addEventListener("click", () => this.set({}));
    this.table.addEventListener("keydown", (event) => this.move(event));
    // The page's own keys (Delete, arrows …) are about nodes, and these are about the panel.
    this.box.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.stopPropagation());
    this.draw();
  }

  /** Takes the node's JSON. */
  show(text) {
    this.found = JSON.parse(text);
    this.layers = this.found.layers;
    this.draw();
  }

  /** The layers that the filter leaves and the measure knows; at least one word of each must fit. */
  chosen(measure) {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    return this.layers.filter((layer) => {
      const text = `${layer.block} ${layer.kind} ${layer.layer} ${layer.algorithm}`.toLowerCase();
      return measure.known(layer) && words.every((word) => text.includes(word));
    });
  }

  draw() {
    this.rules.value = rulesOf(this.multipliers);
    for (const option of this.measure.options) option.disabled = this.layers.length > 0 && !this.layers.some(MEASURES[option.value].known);
    const measure = MEASURES[this.measure.value];
    const chosen = this.chosen(measure);
    const all = sum(this.layers, energyOf);
    const places = Object.keys(this.found?.blocks ?? {});
    const kinds = [...new Set(chosen.map((layer) => layer.kind))].sort(byNumber);
    const rows = [...new Set(chosen.map((layer) => layer.block))].map((block) => {
      const own = chosen.filter((layer) => layer.block === block);
      const cells = kinds.map((kind) => {
        const layers = own.filter((layer) => layer.kind === kind);
        return { block, kind, layers, value: layers.length ? measure.of(layers, all) : null };
      });
      return { block, cells, total: measure.of(own, all), place: places.indexOf(block) };
    });
    rows.sort(ORDERS[this.order.value].by);
    const values = rows.flatMap((row) => row.cells.map((cell) => cell.value)).filter((value) => value > 0);
    const range = [Math.min(...values), Math.max(...values)];

    const corner = element("th", { scope: "col" }, "block");
    const head = element("tr", {}, corner, ...kinds.map((kind) => element("th", { scope: "col" }, this.button(kind))));
    const body = rows.map((row) =>
      element("tr", {}, element("th", { scope: "row" }, this.button(row.block)), ...row.cells.map((cell) => this.cell(cell, measure, range))),
    );
    this.table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
    const first = this.table.querySelector("td");
    if (first) first.tabIndex = 0;
    this.status.textContent = this.summary(chosen, rows);
  }

  summary(chosen, rows) {
    if (!this.found) return "The map appears here when the workflow has run.";
    if (!this.layers.some(MEASURES.norm.known)) return "The overview computes nothing: choose another view to see where the strength sits.";
    if (!chosen.length) return "No layer fits the filter.";
    return `${chosen.length} of ${this.layers.length} layers in ${rows.length} blocks. Point at a field for its layers; click a block or a kind to set its multiplier.`;
  }

  /** The name of a block or a kind, which is set and taken back by a click. */
  button(name) {
    const set = this.multipliers[name];
    const button = element("button", { type: "button", "aria-pressed": String(set != null) }, set == null ? name : `${name} ×${set}`);
    button.addEventListener("click", () => this.toggle(name));
    button.dataset.name = name;
    return button;
  }

  cell({ block, kind, layers, value }, measure, [low, high]) {
    const cell = element("td", { role: "gridcell", tabIndex: -1 });
    if (value == null) {
      cell.setAttribute("aria-label", `${block} ${kind}: no layer`);
      return cell;
    }
    const words = this.describe(block, kind, layers, `${measure.title} ${measure.text(value)}`);
    [cell.style.background, cell.style.color] = colours(value, low, high);
    cell.textContent = measure.text(value);
    cell.setAttribute("aria-label", words);
    cell.dataset.block = block;
    cell.dataset.kind = kind;
    for (const event of ["pointerenter", "focus"]) cell.addEventListener(event, () => (this.status.textContent = words));
    cell.addEventListener("click", () => this.toggle(block));
    return cell;
  }

  /** What a field stands for, in words. */
  describe(block, kind, layers, value) {
    const strongest = layers.reduce((a, b) => (energyOf(b) > energyOf(a) ? b : a));
    const ranks = [...new Set(layers.map((layer) => layer.rank).filter((rank) => rank != null))].join(", ");
    const energy = sum(layers, energyOf);
    const parts = [`${layers.length} layer${layers.length > 1 ? "s" : ""}`, value, `energy ${short(energy)}`, `norm ${short(Math.sqrt(energy))}`];
    if (ranks) parts.push(`rank ${ranks}`);
    if (layers.some((layer) => layer.outlier)) parts.push("stands out");
    return `${block} ${kind}: ${parts.join(", ")}\n${layers.length > 1 ? "strongest: " : ""}${strongest.layer} (${strongest.algorithm})`;
  }

  toggle(name) {
    const value = Number(this.brush.value);
    const { [name]: set, ...others } = this.multipliers;
    const focused = document.activeElement?.dataset ?? {};
    const { name: button, block, kind } = focused;
    this.set(set === value || (set == null && value === 1) ? others : { ...others, [name]: value });
    // The table was made anew: what had the focus has it again.
    const same = button
      ? this.find("button", (item) => item.dataset.name === button)
      : this.find("td", (item) => item.dataset.block === block && item.dataset.kind === kind);
    same?.focus();
    this.status.textContent = this.multipliers[name] == null ? `${name}: as it was` : `${name}: multiplier ${this.multipliers[name]}`;
  }

  find(tag, is) {
    return [...this.table.querySelectorAll(tag)].find(is);
  }

  set(multipliers) {
    this.multipliers = multipliers;
    this.node.properties ??= {};
    if (Object.keys(multipliers).length) this.node.properties[KEPT] = multipliers;
    else delete this.node.properties[KEPT];
    this.draw();
  }

  /** Arrow keys, Home and End walk through the fields; Enter and the space bar click. */
  move(event) {
    const cell = event.target.closest?.("td");
    if (!cell) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      cell.click();
      return;
    }
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const rows = [...this.table.tBodies[0].rows];
    const cells = (row) => [...row.querySelectorAll("td")];
    const row = rows[Math.min(Math.max(rows.indexOf(cell.parentElement) + step[0], 0), rows.length - 1)];
    const column = Math.min(Math.max(cells(cell.parentElement).indexOf(cell) + step[1], 0), cells(row).length - 1);
    const next = cells(row)[column];
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    if (!next.dataset.block) this.status.textContent = next.getAttribute("aria-label");
  }

  copyRules() {
    this.rules.select();
    // Old, but navigator.clipboard does not exist where ComfyUI is opened from another machine over plain http.
    document.execCommand("copy");
    this.status.textContent = this.rules.value ? `copied: ${this.rules.value}` : "Nothing is set: there is nothing to copy.";
  }

  sendRules() {
    const targets = targetsOf(this.node);
    for (const [, widget] of targets) {
      widget.value = this.rules.value;
      widget.callback?.(widget.value);
    }
    this.node.graph?.setDirtyCanvas?.(true, true);
    this.status.textContent = targets.length
      ? `sent to ${targets.map(([title]) => title).join(", ")}`
      : "No connected node takes multipliers: connect Load LyCORIS or Apply LyCORIS to Model to the same stack, or copy them.";
  }
}

function panelOf(node) {
  return elementOf(node, WIDGET, () => new Panel(node).box, SIZE).panel;
}

function show(node, output) {
  const text = [output?.lycoris_inspection ?? []].flat()[0];
  if (text && node.type === NODE) panelOf(node).show(text);
}

app.registerExtension({
  name: "LyCORIS.Inspect",

  nodeCreated(node) {
    if (node.constructor.nodeData?.name !== NODE) return;
    const panel = panelOf(node);
    const configured = node.onConfigure;
    node.onConfigure = function () {
      configured?.apply(this, arguments);
      panel.set({ ...(this.properties?.[KEPT] ?? {}) });
    };
    whenExecuted(node, show);
  },

  onNodeOutputsUpdated(outputs) {
    whenRestored(outputs, show);
  },
});
