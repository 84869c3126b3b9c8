// ioredis or node-redis, told to find the server through Sentinels or as a Cluster, does what a session handler does: see
// clients.go.
const [library, kind, addresses, service] = process.argv.slice(2)
const nodes = addresses.split(',').map(a => ({ host: a.slice(0, a.lastIndexOf(':')), port: Number(a.slice(a.lastIndexOf(':') + 1)) }))
const release = 'if redis.call("get",KEYS[1]) == ARGV[1] then return redis.call("del",KEYS[1]) else return 0 end'

const say = (step, value) => console.log(step + ': ' + JSON.stringify(value))
const where = info => /laddr=(\S+)/.exec(info)[1]

async function ioredis () {
  const Redis = require('ioredis')
  const r = kind === 'cluster'
    ? new Redis.Cluster(nodes)
    : new Redis({ sentinels: nodes, name: service, failoverDetector: true })
  r.on('error', console.error)
  say('where', where(await r.client('INFO')))
  say('get', await r.get('k'))
  say('setex', await r.setex('k', 100, 'v') === 'OK')
  say('get', await r.get('k'))
  say('expire', await r.expire('k', 200))
  say('ttl', await r.ttl('k') > 100)
  say('lock', await r.set('k_LOCK', 'me', 'PX', 30000, 'NX') === 'OK')
  say('lock', await r.set('k_LOCK', 'you', 'PX', 100, 'NX') === 'OK')
  r.defineCommand('release', { numberOfKeys: 1, lua: release }) // EVALSHA first
  say('release', await r.release('k_LOCK', 'me'))
  say('exists', await r.exists('k'))
  say('del', await r.del('k'))
  const p = r.pipeline()
  for (const key of 'abc') p.setex(key, 100, key + '1')
  say('pipeline', (await p.exec()).map(([err, reply]) => !err && reply === 'OK'))
  say('mget', await r.mget('a', 'b', 'nokey', 'c'))
  say('del', await r.del('a', 'b'))
  say('unlink', await r.unlink('b', 'c'))
  await r.quit()
}

async function noderedis () {
  const redis = require('redis')
  const found = kind === 'cluster'
    ? redis.createCluster({ rootNodes: nodes.map(n => ({ socket: n })) })
    : redis.createSentinel({ name: service, sentinelRootNodes: nodes })
  found.on('error', console.error) // one of several may be down
  const r = await found.connect()
  const info = kind === 'cluster'
    ? await r.sendCommand('k', false, ['CLIENT', 'INFO'])
    : await r.use(one => one.sendCommand(true, ['CLIENT', 'INFO']))
  say('where', where(info))
  say('get', await r.get('k'))
  say('setex', await r.setEx('k', 100, 'v') === 'OK')
  say('get', await r.get('k'))
  say('expire', await r.expire('k', 200))
  say('ttl', await r.ttl('k') > 100)
  say('lock', await r.set('k_LOCK', 'me', { PX: 30000, NX: true }) === 'OK')
  say('lock', await r.set('k_LOCK', 'you', { PX: 100, NX: true }) === 'OK')
  say('release', await r.eval(release, { keys: ['k_LOCK'], arguments: ['me'] }))
  say('exists', await r.exists('k'))
  say('del', await r.del('k'))
  say('pipeline', (await Promise.all([...'abc'].map(key => r.setEx(key, 100, key + '1')))).map(reply => reply === 'OK'))
  say('mget', await r.mGet(['a', 'b', 'nokey', 'c']))
  say('del', await r.del(['a', 'b']))
  say('unlink', await r.unlink(['b', 'c']))
  await r.close()
}

({ ioredis, noderedis })[library]().then(() => process.exit(0), err => { console.error(err); process.exit(1) })
