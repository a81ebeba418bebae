#!/usr/bin/env node
// A solc that stays loaded. forge starts a compiler for each mutant. To load solc-js and to warm it
// up takes longer than to compile one contract, so a server does that once.
//   solc.js serve SOCKET PACKAGE   compiles what is sent to SOCKET, until its standard input ends
//   solc.js --version | --standard-json    what forge calls: it asks the server at SOLC_SOCKET
"use strict";
const net = require("node:net");

function serve(socket, name) {
  const solc = require(name);
  const [release, commit] = solc.version().split("+");
  const build = commit.replace(".Emscripten.clang", ".Linux.g++");
  const version = `solc, the solidity compiler commandline interface\nVersion: ${release}+${build}\n`;
  const server = net.createServer({ allowHalfOpen: true }, (asked) => {
    const parts = [];
    asked.on("data", (part) => parts.push(part));
    asked.on("error", () => asked.destroy());
    asked.on("end", () => {
      const input = Buffer.concat(parts).toString("utf8");
      asked.end(input === "" ? version : solc.compile(input));
    });
  });
  server.listen(socket, () => process.stdout.write("ready\n"));
  process.stdin.on("end", () => process.exit(0)).resume();
}

function ask(argv) {
  const server = net.connect({ path: process.env.SOLC_SOCKET, allowHalfOpen: true });
  server.on("error", (error) => {
    process.stderr.write(`no compiler at SOLC_SOCKET: ${error.message}\n`);
    process.exitCode = 1;
  });
  if (argv.includes("--version")) server.end();
  else process.stdin.pipe(server);
  server.pipe(process.stdout);
}

const argv = process.argv.slice(2);
if (argv[0] === "serve") serve(argv[1], argv[2]);
else ask(argv);
