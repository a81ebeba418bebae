// The AI SDK: text, a stream, a tool with its second step, and a structured object.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.env.OPENAI_BASE_URL;
const apiKey = process.env.OPENAI_API_KEY;
const name = process.env.PIECEWORK_MODEL;
const weather = z.object({
  city: z.string(),
  degrees: z.number().int(),
  sky: z.enum(["clear", "cloudy"]),
});
const tools = {
  get_weather: tool({
    description: "The weather of a place.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  }),
};
const compatible = createOpenAICompatible({
  name: "piecework",
  baseURL,
  apiKey,
  supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey });

for (const model of [compatible(name), openai.chat(name), openai.responses(name)]) {
  const answer = await generateText({ model, prompt: "Hello" });
  assert.equal(answer.text, "You said: Hello");
  let text = "";
  for await (const part of streamText({ model, prompt: "Hello" }).textStream) text += part;
  assert.equal(text, "You said: Hello");
  const told = await generateText({ model, prompt: "Weather?", tools, stopWhen: stepCountIs(3) });
  assert.match(told.text, /The tool said: .*sunny in Oslo/);
  const { object } = await generateObject({ model, schema: weather, prompt: "Weather?" });
  assert.deepEqual(object, { city: "Oslo", degrees: -4, sky: "clear" });
}
const require = createRequire(import.meta.url);
console.log(`ai ${require("ai/package.json").version}`);
