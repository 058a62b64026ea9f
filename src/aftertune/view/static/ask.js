// Says that the models are at work. The form is an ordinary one.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("ask");
  form?.addEventListener("submit", () => {
    document.getElementById("asking").textContent = "Both models are writing. The first question also loads them.";
    form.querySelector("button").disabled = true;
  });
  window.addEventListener("pageshow", () => { if (form) form.querySelector("button").disabled = false; });
});
