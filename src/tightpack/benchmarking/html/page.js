// Under the pointer: which step ran there, what it held and how long it took.
for (const group of document.querySelectorAll("g.timeline")) {
  const field = group.querySelector(".field");
  const cursor = group.querySelector(".cursor");
  const reading = group.querySelector(".reading");
  const [start, elapsed, prompt, decodes] = JSON.parse(field.dataset.steps);
  const until = Number(field.dataset.until);
  const left = field.x.baseVal.value;
  const width = field.width.baseVal.value;

  field.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(field.getScreenCTM().inverse());
    const seconds = ((point.x - left) / width) * until;
    cursor.setAttribute("x1", point.x);
    cursor.setAttribute("x2", point.x);
    group.classList.add("shown");
    let low = 0;
    let high = start.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (start[middle] <= seconds) low = middle + 1;
      else high = middle;
    }
    const step = low - 1;
    const idle = step < 0 || seconds > start[step] + elapsed[step];
    reading.textContent = idle
      ? `${seconds.toFixed(2)} s: idle`
      : `${start[step].toFixed(2)} s: ${prompt[step]} prompt tokens, ${decodes[step]} decodes,` +
        ` ${(1000 * elapsed[step]).toFixed(0)} ms`;
  });
  field.addEventListener("pointerleave", () => group.classList.remove("shown"));
}
