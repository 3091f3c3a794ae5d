"use strict";
// Renders /openapi.json with a form for each operation. No library, no other host.

const METHODS = ["get", "post", "put", "patch", "delete"];
const tokenInput = document.getElementById("token");
let spec;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function resolved(schema) {
  if (!schema || !schema.$ref) return schema || {};
  return spec.components.schemas[schema.$ref.split("/").pop()] || {};
}

// An example value of a schema: what a request body starts as, and what an answer looks like.
function example(schema, seen = []) {
  if (schema.$ref) {
    if (seen.includes(schema.$ref)) return {};
    seen = [...seen, schema.$ref];
  }
  const shape = resolved(schema);
  if (shape.enum) return shape.enum[0];
  if (shape.type === "array") return [example(shape.items, seen)];
  if (shape.type === "boolean") return false;
  if (shape.type === "integer" || shape.type === "number") return 0;
  if (shape.type === "string") return shape.format === "date-time" ? "2024-01-01T00:00:00Z" : "";
  if (shape.additionalProperties) return {};
  const value = {};
  for (const [name, property] of Object.entries(shape.properties || {})) {
    // A message's content is given once: as text.
    if (name === "content" && shape.properties.text) continue;
    value[name] = example(property, seen);
  }
  return value;
}

function typeName(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.type === "array") return "list of " + typeName(schema.items);
  if (schema.additionalProperties) return "map to " + typeName(schema.additionalProperties);
  return schema.format || schema.type || "any";
}

function fieldTable(schema) {
  const properties = Object.entries(resolved(schema).properties || {});
  if (!properties.length) return element("p", { class: "quiet" }, "No fields.");
  const body = element("tbody");
  for (const [name, property] of properties) {
    body.append(element("tr", {},
      element("td", {}, element("code", {}, name)),
      element("td", { class: "quiet" }, typeName(property)),
      element("td", {}, property.description || "")));
  }
  return element("table", {}, body);
}

async function send(event, path, method, operation, inputs, bodyInput, output, button) {
  event.preventDefault();
  let address = path;
  const query = new URLSearchParams();
  for (const { parameter, input } of inputs) {
    if (parameter.in === "path") address = address.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (input.value !== "") query.append(parameter.name, input.value);
  }
  if ([...query].length) address += "?" + query;
  const headers = {};
  if (operation.security && tokenInput.value) headers.authorization = "Bearer " + tokenInput.value.trim();
  const request = { method: method.toUpperCase(), headers };
  if (bodyInput && bodyInput.value.trim()) {
    headers["content-type"] = "application/json";
    request.body = bodyInput.value;
  }
  button.disabled = true;
  try {
    const answer = await fetch(address, request);
    const text = await answer.text();
    let shown = text;
    try {
      const value = JSON.parse(text);
      shown = JSON.stringify(value, null, 2);
      if (value.access_token) tokenInput.value = value.access_token;
    } catch { /* Not JSON: shown as it came. */ }
    output.textContent = `${request.method} ${address}\n${answer.status} ${answer.statusText}\n\n${shown}`;
  } catch (error) {
    output.textContent = String(error);
  } finally {
    button.disabled = false;
  }
}

function operationPanel(path, method, operation) {
  const content = element("div");
  const panel = element("details", { id: operation.operationId },
    element("summary", {},
      element("span", { class: "method " + method }, method.toUpperCase()),
      element("code", {}, path), " ",
      element("span", { class: "quiet" }, operation.summary)));
  panel.append(content);
  // Filled when first opened: the page stays light however many operations there are.
  panel.addEventListener("toggle", () => {
    if (!content.childElementCount) content.append(...operationContent(path, method, operation));
  });
  return panel;
}

function operationContent(path, method, operation) {
  const parts = [element("p", { class: "description" }, operation.description || "")];
  if (operation.security) parts.push(element("p", { class: "quiet" }, "Needs an access token."));
  const form = element("form");
  const inputs = (operation.parameters || []).map((parameter) => {
    const id = `${operation.operationId}-${parameter.name}`;
    const input = element("input", { id, autocomplete: "off" });
    if (parameter.required) input.required = true;
    form.append(
      element("label", { for: id }, element("code", {}, parameter.name), " ",
        element("span", { class: "quiet" }, `${typeName(parameter.schema)} ${parameter.description || ""}`)),
      input);
    return { parameter, input };
  });
  let bodyInput = null;
  if (operation.requestBody) {
    const schema = operation.requestBody.content["application/json"].schema;
    const id = operation.operationId + "-body";
    const start = JSON.stringify(example(schema), null, 2);
    bodyInput = element("textarea", { id, rows: Math.min(16, start.split("\n").length + 1), spellcheck: "false" });
    bodyInput.value = start;
    form.append(fieldTable(schema), element("label", { for: id }, "Body"), bodyInput);
  }
  const output = element("pre", { "aria-live": "polite" });
  const button = element("button", { type: "submit" }, "Send");
  form.append(button);
  form.addEventListener("submit", (event) =>
    send(event, path, method, operation, inputs, bodyInput, output, button));
  const answer = operation.responses["200"].content["application/json"].schema;
  parts.push(form, output, element("h3", {}, "Answer"), fieldTable(answer));
  parts.push(element("h3", {}, "Errors"), errorTable(operation));
  return parts;
}

function errorTable(operation) {
  const body = element("tbody");
  for (const [status, response] of Object.entries(operation.responses)) {
    if (status === "200") continue;
    body.append(element("tr", {},
      element("td", {}, element("code", {}, status)), element("td", {}, response.description)));
  }
  return element("table", {}, body);
}

async function start() {
  const main = document.getElementById("operations");
  try {
    spec = await (await fetch("/openapi.json")).json();
  } catch (error) {
    main.append(element("p", { role: "alert" }, "The document could not be read: " + error));
    return;
  }
  document.getElementById("about").textContent = `Version ${spec.info.version}. ${spec.info.description}`;
  for (const tag of spec.tags) {
    const panels = [];
    for (const [path, item] of Object.entries(spec.paths)) {
      for (const method of METHODS) {
        if (item[method] && item[method].tags.includes(tag.name)) panels.push(operationPanel(path, method, item[method]));
      }
    }
    main.append(element("section", {},
      element("h2", {}, tag.name), element("p", { class: "quiet description" }, tag.description), ...panels));
  }
}

start();
