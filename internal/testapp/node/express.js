// express-session with one of its stores, asked for a page by a real HTTP request: see testapp.go.
const http = require('http')
const readline = require('readline')
const session = require('express-session')
const signature = require('cookie-signature')

const url = new URL(process.argv[2])
const at = { host: url.hostname, port: Number(url.port), user: url.username, database: url.pathname.slice(1) }

// Each is a store, and what makes its table and collects what is over.
const kinds = {
  async 'mysql:' () {
    const MySQLStore = require('express-mysql-session')(session)
    const store = new MySQLStore({ ...at, createDatabaseTable: false, clearExpired: false })
    return { store, create: () => store.createDatabaseTable(), gc: () => store.clearExpiredSessions() }
  },
  async 'postgres:' () {
    const PgStore = require('connect-pg-simple')(session)
    const pool = new (require('pg').Pool)(at)
    const store = new PgStore({ pool, pruneSessionInterval: false })
    const fs = require('fs').promises
    return {
      store,
      create: async () => pool.query(await fs.readFile(require.resolve('connect-pg-simple/table.sql'), 'utf8')),
      gc: () => new Promise((resolve, reject) => store.pruneSessions(err => err ? reject(err) : resolve()))
    }
  },
  async 'redis:' () {
    const { RedisStore } = require('connect-redis')
    const client = require('redis').createClient({ url: process.argv[2] })
    client.on('error', () => {})
    await client.connect()
    return { store: new RedisStore({ client }) }
  }
}

async function main () {
  const kind = await kinds[url.protocol]()
  let wanted // the id of a session that is new
  const middleware = session({ store: kind.store, secret: 's', resave: false, saveUninitialized: true, genid: () => wanted })
  const server = http.createServer(async (req, res) => {
    let body = ''
    for await (const part of req.setEncoding('utf8')) body += part
    const step = JSON.parse(body)
    const end = err => res.writeHead(err ? 500 : 200).end(err ? String(err.stack) : '{}')
    wanted = step.id
    middleware(req, res, err => {
      if (err) return end(err)
      if (step.do === 'destroy') return req.session.destroy(end)
      req.session.cookie.maxAge = step.life * 1000
      if (step.text) req.session.text = step.text
      end()
    })
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))

  const page = async step => {
    const cookie = 'connect.sid=' + encodeURIComponent('s:' + signature.sign(step.id, 's'))
    const res = await fetch(`http://127.0.0.1:${server.address().port}/`, { method: 'POST', headers: { cookie }, body: JSON.stringify(step) })
    if (res.status !== 200) throw new Error(await res.text())
    return res.json()
  }
  // What is read only is asked of the store: a page would touch it.
  const look = step => new Promise((resolve, reject) => kind.store.get(step.id, (err, found) =>
    err ? reject(err) : resolve({ found: Boolean(found), text: found ? found.text || '' : '' })))

  for await (const line of readline.createInterface({ input: process.stdin })) {
    const step = JSON.parse(line)
    let answer = {}
    try {
      if (step.do === 'create' || step.do === 'gc') await kind[step.do]()
      else answer = await (step.do === 'read' ? look(step) : page(step))
    } catch (err) {
      answer = { error: String(err && err.stack ? err.stack : err) }
    }
    console.log(JSON.stringify(answer))
  }
  process.exit(0)
}

main()
