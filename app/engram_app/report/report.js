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
  made.margin = { ...made.margin, t: 46 };
  made.font = { ...made.font, color: ink, family: "Helvetica Neue, Arial, sans-serif" };
  Object.assign(made, { paper_bgcolor: clear, plot_bgcolor: clear });
  for (const name of Object.keys(made).filter((key) => /^[xy]axis/.test(key)))
    Object.assign(made[name], { gridcolor: line, zerolinecolor: line, automargin: true });
  for (const note of made.annotations ?? []) note.font = { ...note.font, color: ink };
  return made;
};

const draw = (figures, dark) => Promise.all(Object.entries(figures).map(([name, figure]) =>
  Plotly.react(`figure-${name}`, figure.data, themed(figure.layout, dark), {
    responsive: true, displaylogo: false,
    toImageButtonOptions: { format: "svg", filename: name },
  })));

const start = async () => {
  const figures = JSON.parse(content("figures"));
  await unpack();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  await draw(figures, dark.matches);
  dark.addEventListener("change", () => draw(figures, dark.matches));
  addEventListener("beforeprint", () => draw(figures, false));
  addEventListener("afterprint", () => draw(figures, dark.matches));
  document.documentElement.dataset.drawn = "yes";
};

start().catch((error) => {
  for (const plot of document.querySelectorAll(".plot"))
    plot.textContent = `This browser cannot draw the figure (${error.message ?? error}). ` +
      "Its numbers are in the table below.";
});
