/* A picture with controls: shows the state that the controls name. Without this script the first one stays. */
addEventListener("DOMContentLoaded", () => {
  for (const explorer of document.querySelectorAll(".explore")) {
    const [form, image, sentence] = ["form", "img", "[aria-live]"].map((name) => explorer.querySelector(name));
    const states = JSON.parse(explorer.querySelector("script").textContent);
    const show = () => {
      const state = states[[...new FormData(form).values()].join(", ")];
      Object.assign(image, { src: state.src, alt: state.alt });
      sentence.textContent = state.sentence;
      for (const slider of form.querySelectorAll("[type=range]")) slider.nextElementSibling.value = slider.value;
    };
    form.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    show();
  }
});
