// llama.cpp by node-llama-cpp, as worker.py: node llama_cpp.mjs NODE_MODULES GGUF THREADS VOCABULARY
import readline from "node:readline";

const [modules, modelPath, threads, vocabulary] = process.argv.slice(2);
const {getLlama} = await import(`${modules}/node-llama-cpp/dist/index.js`);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: Number(threads)});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 1024, batchSize: 1024, threads: Number(threads)});
const sequence = context.getSequence();
console.log("ready");

for await (const line of readline.createInterface({input: process.stdin})) {
    const job = JSON.parse(line);
    const prompt = Array.from({length: job.prompt}, (_, i) => (i * 7919 + 13) % Number(vocabulary));
    await sequence.clearHistory();
    const start = performance.now();
    let count = 0;
    for await (const _ of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        if (++count === job.new) break;
    }
    console.log((performance.now() - start) / 1000);
}
