// The bill of every channel of a payer, from the chain and from the client's receipts.
// Usage: node bill.mjs deployment.json receipts.json
import { readFileSync } from "node:fs";
import { concat, createPublicClient, formatUnits, getContractAddress, http, keccak256 } from "viem";

const deployment = JSON.parse(readFileSync(process.argv[2]));
const receipts = JSON.parse(readFileSync(process.argv[3])).receipts;
const erc20 = [
  { type: "function", name: "decimals", inputs: [], outputs: [{ type: "uint8" }], stateMutability: "view" },
  { type: "function", name: "symbol", inputs: [], outputs: [{ type: "string" }], stateMutability: "view" },
];

const chain = createPublicClient({ transport: http(deployment.rpc_url) });

// The escrow is where its frozen init code puts it, on every chain.
const abi = JSON.parse(readFileSync("contracts/release/Escrow.abi.json"));
const bytecode = readFileSync("contracts/release/Escrow.initcode.hex", "ascii").trim();
const escrow = {
  address: getContractAddress({
    opcode: "CREATE2",
    from: "0x4e59b44847b379578588920cA78FbF26c0B4956C",
    salt: `0x${"00".repeat(32)}`,
    bytecode,
  }),
  abi,
};

const token = { address: deployment.token.address, abi: erc20 };
const decimals = await chain.readContract({ ...token, functionName: "decimals" });
const symbol = await chain.readContract({ ...token, functionName: "symbol" });

// 1. What was paid: the sum of the Settled events of each channel.
const settled = await chain.getContractEvents({
  ...escrow,
  eventName: "Settled",
  fromBlock: BigInt(deployment.from_block ?? 0),
});
const channels = new Map();
for (const { args } of settled) {
  const known = channels.get(args.channelId) ?? { paid: 0n, roots: [] };
  known.paid += args.amount;
  known.roots.push({ count: args.count, root: args.receiptsRoot });
  channels.set(args.channelId, known);
}

// 2. It agrees with the state of the channel.
for (const [id, channel] of channels) {
  const state = await chain.readContract({ ...escrow, functionName: "getChannel", args: [id] });
  if (state.settled !== channel.paid) throw new Error(`channel ${id}: events and state differ`);
}

// 3. What it was paid for: the receipts under the settled root. Later receipts are not settled yet.
const node = (left, right) => keccak256(concat(["0x01", left, right]));
function rootOf(leaf, index, count, siblings) {
  let [at, last, hash] = [index, count - 1, keccak256(concat(["0x00", leaf]))];
  for (const sibling of siblings) {
    if (last === 0) return null;
    if (at % 2 === 1 || at === last) {
      hash = node(sibling, hash);
      while (at % 2 === 0 && at !== 0) [at, last] = [at >> 1, last >> 1];
    } else {
      hash = node(hash, sibling);
    }
    [at, last] = [at >> 1, last >> 1];
  }
  return last === 0 ? hash : null;
}
for (const [id, channel] of channels) {
  const count = channel.roots.at(-1).count;
  const lines = receipts.filter((r) => r.channel === id && BigInt(r.leaf_index) < count);
  for (const r of lines) {
    if (rootOf(r.digest, r.leaf_index, r.count, r.proof) !== r.receipts_root) {
      throw new Error(`receipt ${r.digest} is not under its root`);
    }
  }
  const sum = lines.reduce((total, r) => total + BigInt(r.amount), 0n);
  console.log(`channel ${id}`);
  console.log(`  paid on chain  ${formatUnits(channel.paid, decimals)} ${symbol}`);
  console.log(`  receipts       ${lines.length}, together ${formatUnits(sum, decimals)} ${symbol}`);
  if (sum !== channel.paid) throw new Error(`channel ${id}: receipts and settlement differ`);
}
if (channels.size === 0) throw new Error("nothing is settled yet");
