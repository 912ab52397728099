/* A tap on a figure, or Enter, opens it in its own size, to be scrolled; a tap or Escape closes it. */
addEventListener("DOMContentLoaded", () => {
  const dialog = document.createElement("dialog");
  dialog.className = "zoom";
  dialog.setAttribute("aria-label", "The figure in its own size");
  dialog.addEventListener("click", () => dialog.close());
  // The theme takes Escape for its search, so that a dialog does not hear of it.
  addEventListener("keydown", (event) => event.key === "Escape" && dialog.close(), true);
  document.body.append(dialog);
  for (const image of document.querySelectorAll("article figure img")) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "zoom", ariaLabel: `Open in its own size: ${image.alt}` });
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => {
      dialog.replaceChildren(image.cloneNode());
      dialog.showModal();
    });
  }
});
