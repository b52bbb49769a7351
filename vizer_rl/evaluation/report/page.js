"use strict";
// What charts and gallery share. Text enters the page as text nodes and attributes alone.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// As many digits as Python's `number` shows.
function number(value, signed = false) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const text = size > 0 && size < 0.0005 ? value.toExponential(0)
    : value.toFixed(size < 2 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0);
  return (signed && value > 0 ? "+" : "") + text.replace("-", "−");
}
