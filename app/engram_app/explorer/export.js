// PNG and SVG of a figure on this page, by plotly's own camera: no picture leaves the browser.
const save = (figure, name, format) => {
  const plot = document.querySelector(`.st-key-${figure} .js-plotly-plot`);
  const camera = plot?.querySelector('.modebar-btn[data-attr="toImage"], .modebar-btn[data-title*="ownload"]');
  if (!camera) return;
  plot._context.toImageButtonOptions = { format, filename: name, scale: format === "png" ? 2 : 1 };
  camera.click();
};

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".export");
  const buttons = ["png", "svg"].map((format) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = format.toUpperCase();
    made.setAttribute("aria-label", `Save as ${made.textContent}: ${data.title}`);
    made.onclick = () => save(data.figure, data.name, format);
    return made;
  });
  root.replaceChildren(...buttons);
}
