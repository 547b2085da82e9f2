// Unpacks plotly.js, which travels in the page, and draws every figure; nothing is fetched.
const content = (id) => document.getElementById(id).textContent;

const unpack = async () => {
  const packed = Uint8Array.from(atob(content("plotly").trim()), (c) => c.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = new Blob([await new Response(plain).text()], { type: "text/javascript" });
  await new Promise((resolve, reject) => {
    const script = document.createElement("script");
    Object.assign(script, { src: URL.createObjectURL(code), onload: resolve, onerror: reject });
    document.head.append(script);
  });
};

const themed = (layout, dark) => {
  const ink = dark ? "#e8ebef" : "#1b1f24";
  const line = dark ? "#39424e" : "#e3e7ec";
  const clear = "rgba(0,0,0,0)";
  const made = structuredClone(layout);
  delete made.title;
  made.margin = { ...made.margin, t: 72 };  // the legend, and above it the mode bar
  made.font = { ...made.font, color: ink, family: "Helvetica Neue, Arial, sans-serif" };
  Object.assign(made, { paper_bgcolor: clear, plot_bgcolor: clear });
  made.modebar = { bgcolor: clear, color: dark ? "#7d8894" : "#9aa5b1", activecolor: ink };
  for (const name of Object.keys(made).filter((key) => /^[xy]axis/.test(key)))
    Object.assign(made[name], { gridcolor: line, zerolinecolor: line, automargin: true });
  for (const note of made.annotations ?? []) note.font = { ...note.font, color: ink };
  return made;
};

// Marks in near black would not be seen on dark paper.
const parsed = (dark) => JSON.parse(dark
  ? content("figures").replace(/"#(222|222222|444|444444|555|555555)"/g, '"#c9d1da"')
  : content("figures"));

const draw = (dark) => Promise.all(Object.entries(parsed(dark)).map(([name, figure]) =>
  Plotly.react(`figure-${name}`, figure.data, themed(figure.layout, dark), {
    responsive: true, displaylogo: false,
    modeBarButtons: [["toImage", "resetScale2d"]],
    toImageButtonOptions: { format: "svg", filename: name },
  })));

const start = async () => {
  await unpack();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  await draw(dark.matches);
  dark.addEventListener("change", () => draw(dark.matches));
  addEventListener("beforeprint", () => draw(false));
  addEventListener("afterprint", () => draw(dark.matches));
  document.documentElement.dataset.drawn = "yes";
};

start().catch((error) => {
  for (const plot of document.querySelectorAll(".plot"))
    plot.textContent = `This browser cannot draw the figure (${error.message ?? error}). ` +
      "Its numbers are in the table below.";
});
