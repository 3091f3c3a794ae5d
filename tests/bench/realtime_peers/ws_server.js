// Node's `ws`: joins and a broadcast to every open socket, as its documentation does it.
const { WebSocketServer, WebSocket } = require(process.env.WS_FOLDER + '/node_modules/ws')

const server = new WebSocketServer({ port: 0, host: '127.0.0.1', perMessageDeflate: false, backlog: 4096 })
let seq = 0
server.on('listening', () => console.log(server.address().port))
server.on('connection', (socket) => {
  socket.on('error', () => {})
  socket.on('message', (data) => {
    const [joinRef, ref, topic, event, payload] = JSON.parse(data)
    if (event === 'publish') {
      seq += 1
      const said = { message_id: '0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e70', seq, ...payload }
      const text = JSON.stringify([null, null, topic, 'new_message', said])
      for (const client of server.clients) if (client.readyState === WebSocket.OPEN) client.send(text)
    } else {
      socket.send(JSON.stringify([joinRef, ref, topic, 'phx_reply', { status: 'ok', response: {} }]))
    }
  })
})
